# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What a site adapts, sourced by the sbatch scripts; CADRE_ENV=FILE names another file in its place.
#   module use PREFIX/share/cadre/modulefiles; module load cadre     the modulefile that is installed beside this
#   export OMPI_MCA_btl_tcp_if_include=10.0.0.0/24 OMPI_MCA_oob_tcp_if_include=10.0.0.0/24
# InfiniBand and RoCE: Debian switches UCX off in /etc/openmpi/openmpi-mca-params.conf; cadre doctor tells.
#   export OMPI_MCA_pml=ucx UCX_NET_DEVICES=mlx5_0:1 UCX_TLS=rc,sm,self
# A container (launch/containers/cadre.def): the launcher of the host starts one on each rank; its MPI speaks PMIx with it.
#   CONTAINER=(apptainer exec --bind "$PWD" cadre.sif); CADRE=cadre
# shellcheck disable=SC2034  # for ranks.sh
CONTAINER=()

# srun or mpirun. srun needs Slurm's plug-in for the MPI that cadre was built with (`srun --mpi=list`): pmix for Open MPI,
# pmi2 for MPICH. mpirun needs nothing of Slurm.
export LAUNCHER=${LAUNCHER:-srun}
export SRUN_OPTIONS=${SRUN_OPTIONS:---mpi=pmix}
export MPIRUN_OPTIONS=${MPIRUN_OPTIONS:---bind-to core}

# A crash of a thousand ranks must not write a thousand core files.
ulimit -c 0
