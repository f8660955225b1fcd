#!/usr/bin/env bash
# A training that survives time limits and preemption, on any number of GPUs and machines:
#
#   sbatch scripts/slurm_train.sh fold=0 tuning=svf backbone.weights=IMAGENET1K_V1
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 scripts/slurm_train.sh fold=0 ...
#   sbatch --array=0-3 scripts/slurm_train.sh ...     # one job a fold
#
# Put your cluster's partition, account and memory here, and what activates the environment below.
#SBATCH --job-name=fss-svf
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%A_%a.log
set -uo pipefail

# . .venv/bin/activate

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # another one for each job of a machine
export MASTER_ADDR MASTER_PORT
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  set -- "fold=$SLURM_ARRAY_TASK_ID" "$@"
fi

# One process a task. The names are those that torchrun gives, from which the processes find each other.
# --kill-on-bad-exit: one that fails ends the others. One that stopped on purpose waits for the others' last words.
task='
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
trap : USR1 TERM # for the training, not for this shell
python -m fss_svf train resume=auto "$@"
status=$?
[ $status -ne 75 ] || [ "$SLURM_NTASKS" = 1 ] || sleep 5
exit $status
'
srun --kill-on-bad-exit=1 bash -c "$task" fss-svf "$@"
status=$?

# 75: stopped by a signal, with a checkpoint written. Anything else would come again.
if [ $status -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
