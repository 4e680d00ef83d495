# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# For the sbatch scripts, in place of slurm/env.sh: ranks in a container.
#   CADRE_ENV=launch/containers/env.sh CADRE_IMAGE=cadre.sif sbatch --nodes=2 launch/slurm/train.sbatch RUN.toml
# srun starts a container on each rank; the folder of submission is visible in it, other folders need CADRE_BIND=DIR,DIR.
: "${scripts:?train.sbatch sets it}"
# shellcheck source=launch/slurm/env.sh
source "$scripts/env.sh"
# shellcheck disable=SC2034  # for ranks.sh
CONTAINER=(apptainer exec --bind "$PWD${CADRE_BIND:+,$CADRE_BIND}" "${CADRE_IMAGE:-cadre.sif}")
CADRE=${CADRE:-cadre}
