# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What a site adapts, sourced by the sbatch scripts: modules, network, and how ranks are started.
#   module load gcc openmpi
#   export OMPI_MCA_btl_tcp_if_include=10.0.0.0/24 OMPI_MCA_oob_tcp_if_include=10.0.0.0/24
#   export UCX_NET_DEVICES=mlx5_0:1

# srun or mpirun. srun needs Slurm's plug-in for the MPI that cadre was built with (`srun --mpi=list`): pmix for Open MPI,
# pmi2 for MPICH. mpirun needs nothing of Slurm.
export LAUNCHER=${LAUNCHER:-srun}
export SRUN_OPTIONS=${SRUN_OPTIONS:---mpi=pmix}
export MPIRUN_OPTIONS=${MPIRUN_OPTIONS:---bind-to core}

# Every rank gets its cores and no more threads than that. srun takes --cpus-per-task from here since Slurm 22.05, not
# from the allocation.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=$SRUN_CPUS_PER_TASK OPENBLAS_NUM_THREADS=$SRUN_CPUS_PER_TASK OMP_PLACES=cores

# A crash of a thousand ranks must not write a thousand core files.
ulimit -c 0
