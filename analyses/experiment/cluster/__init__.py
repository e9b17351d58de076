"""An experiment's work shared among jobs of a cluster, through submitit: Slurm's, or processes of this machine.

The work of an experiment comes in waves of parts (`Experiment.parts`). A shard is a job that makes its share of a wave
in a folder of its own, DIR/shards/K, a locked run like any other; when all are done, one more job takes over what they
made into DIR and runs the ordinary command there, which finds its work done, or does what is lacking, and writes the
report. So the results are those of one process, and a job that is killed, or queued again, goes on with what it has.

    DIR/shards/plan.json        what is shared, and the job of each shard; written by whoever submits
    DIR/shards/settled-memory.json   the memory that work is cut by, as the first shard has settled it for all; and
    DIR/shards/settled-device.json   the kind of device, where that is left to the jobs; both until the work is done
    DIR/shards/K/progress.json  how far shard K is, or what it failed of; written by its job
    DIR/shards/K/log            what it printed
    DIR/shards/merge/           the same of the last job
    DIR/shards/jobs/            submitit's own files

How it fails: one line, as everywhere; of a shard, in its report.

Modules:
    plan: what is shared, and how far each job is, as files
    shards: what a job does
    surroundings: what jobs are started in: submitit, Python, signals, environment, GPUs
    jobs: Slurm's arrays, or processes of this machine
    submitting: submits, waits, joins, submits again
    status: how far a run is, as text
"""
