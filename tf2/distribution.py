"""The distribution strategy, and agreement between workers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import tensorflow as tf

from common import connections
from common.errors import UserError, one_line
from tf2.config import DeviceConfig
from tf2.files import checkpoints_in
from tf2.out_of_memory import is_out_of_memory

MAX_TASKS_PER_NODE = 1024
# What TensorFlow raises when a worker that others wait for is gone.
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)
GPU_MEMORY = 8192  # MB that the parts of a split GPU share


def build_strategy(config: DeviceConfig) -> tf.distribute.Strategy:
    """The strategy that `config.strategy` names, or that fits the devices.

    A strategy over several workers must be built before TensorFlow does anything else.

    Raises:
        UserError: if a device or worker is missing or can't be reached.
    """
    if config.logical_devices:
        split_device(config.logical_devices)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    kind, _ = _choose(config)
    if kind == 'tpu':
        return _tpu_strategy(config)
    if kind == 'multi_worker':
        return _multi_worker_strategy(config.connect_timeout)
    names = [device.name for device in _devices()]
    if kind == 'one_device':
        return tf.distribute.OneDeviceStrategy(names[0])
    # Within a process, collective operations gain nothing on CPUs, and a second strategy could not
    # have groups of its own.
    on_cpu = not tf.config.list_logical_devices('GPU')
    return tf.distribute.MirroredStrategy(
        names, tf.distribute.ReductionToOneDevice() if on_cpu else None
    )


def describe(config: DeviceConfig, strategy: tf.distribute.Strategy) -> str:
    """What `build_strategy` chose, and why."""
    kind, reason = _choose(config)
    replicas = strategy.num_replicas_in_sync
    text = f'Strategy {kind} with {replicas} replica{"s" if replicas > 1 else ""} ({reason})'
    if not spans_workers(strategy):
        return text
    resolver = strategy.cluster_resolver
    return f'{text}, this is {resolver.task_type} {resolver.task_id}'


def _choose(config: DeviceConfig) -> tuple[str, str]:
    """Name of the strategy, and why."""
    if config.strategy != 'auto':
        return config.strategy, f'--strategy={config.strategy}'
    if config.use_tpu:
        return 'tpu', '--use_tpu'
    named = [name for name in ('tpu_name', 'master') if getattr(config, name)]
    if config.use_tpu is None and named:
        return 'tpu', f'--{named[0]}'
    if config.use_tpu is None and tf.config.list_physical_devices('TPU'):
        return 'tpu', 'a TPU is attached'
    gpus = len(tf.config.list_logical_devices('GPU'))
    if gpus > 1:
        return 'mirrored', f'{gpus} GPUs'
    if config.logical_devices > 1:
        return 'mirrored', f'--logical_devices={config.logical_devices}'
    return 'one_device', 'one GPU' if gpus else 'no GPU'


def _devices() -> list[tf.config.LogicalDevice]:
    """All GPUs, or the logical CPUs if there is no GPU."""
    return tf.config.list_logical_devices('GPU') or tf.config.list_logical_devices('CPU')


def split_device(count: int) -> None:
    """Splits the CPU, or the only GPU, into `count` logical devices, before TensorFlow uses it.

    Raises:
        UserError: if there are several GPUs, or TensorFlow has used the device undivided.
    """
    gpus = tf.config.list_physical_devices('GPU')
    if len(gpus) > 1:
        raise UserError(
            f'--logical_devices splits a CPU or one GPU, to try out several replicas; found '
            f'{len(gpus)} GPUs. Leave it out.'
        )
    # A GPU's memory must be divided; the CPU's is shared.
    memory = GPU_MEMORY // count if gpus else None
    parts = [tf.config.LogicalDeviceConfiguration(memory_limit=memory) for _ in range(count)]
    (device,) = gpus or tf.config.list_physical_devices('CPU')
    if len(tf.config.get_logical_device_configuration(device) or ()) == count:
        return  # by an earlier run of this process
    try:
        tf.config.set_logical_device_configuration(device, parts)
    except RuntimeError as error:
        raise UserError(
            f'--logical_devices={count} must come before TensorFlow uses the device; found it in '
            'use in this process. Start another process.'
        ) from error


# TensorFlow allows one per process; all stages of a pipeline share it.
@functools.cache
def _multi_worker_strategy(seconds: float) -> tf.distribute.Strategy:
    resolver, cluster = _cluster()
    workers = cluster.get('chief', []) + cluster.get('worker', [])
    _wait_for_workers(resolver, workers, seconds)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(
            f'The workers {", ".join(workers)} should connect to each other; found: '
            f'{one_line(error)}. Check TF_CONFIG, and that each of them was started once.'
        ) from error


def _wait_for_workers(
    resolver: tf.distribute.cluster_resolver.ClusterResolver, workers: list[str], seconds: float
) -> None:
    """Waits until all other workers answer. TensorFlow's own wait can't be interrupted.

    Raises:
        UserError: if some of them don't answer within `seconds`.
    """
    own = _own_address(resolver)
    others = {_place_of(worker): worker for worker in workers if worker != own}
    print(
        f'Waiting up to {seconds} s (--connect_timeout) until all workers are there: '
        f'{", ".join(workers)}.',
        flush=True,
    )
    try:
        with connections.answering(_place_of(own)[1]):
            missing = connections.wait_for(list(others), seconds)
    except OSError as error:
        raise UserError(
            f'Worker {own} must be able to listen at its port; found: {one_line(error)}. Start '
            'each worker once, and give each of them an index of its own.'
        ) from error
    if missing:
        found = ', '.join(f'{others[place]} ({one_line(why)})' for place, why in missing.items())
        raise UserError(
            f'All workers must be there within {seconds} s (--connect_timeout); no answer from '
            f'{found}. Start each of them once, and check their addresses.'
        )


def _own_address(resolver: tf.distribute.cluster_resolver.ClusterResolver) -> str:
    return resolver.cluster_spec().task_address(resolver.task_type, resolver.task_id)


def _place_of(worker: str) -> tuple[str, int]:
    return connections.split_address(f'grpc://{worker}', 'A worker in TF_CONFIG')


def _cluster() -> tuple[tf.distribute.cluster_resolver.ClusterResolver, dict[str, list[str]]]:
    """The workers, from TF_CONFIG or SLURM's variables."""
    resolvers = tf.distribute.cluster_resolver
    try:
        resolver = resolvers.TFConfigClusterResolver()
        if not resolver.cluster_spec().as_dict():
            # SLURM itself assigns each task its GPUs. TensorFlow's own assignment, which fails
            # without GPUs, is off; its counts only have to allow one GPU for each possible task.
            resolver = resolvers.SlurmClusterResolver(
                gpus_per_node=MAX_TASKS_PER_NODE, gpus_per_task=1, auto_set_gpu=False
            )
        _place_of(_own_address(resolver))
        return resolver, resolver.cluster_spec().as_dict()
    except (ValueError, KeyError, RuntimeError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            '--strategy=multi_worker expects TF_CONFIG, JSON such as {"cluster": {"worker": '
            '["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}, or a step of '
            f'SLURM; found neither ({one_line(error)}).'
        ) from error


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes files."""
    resolver = strategy.cluster_resolver
    if not spans_workers(strategy):
        return True
    return resolver.task_type == 'chief' or (
        resolver.task_type == 'worker'
        and resolver.task_id == 0
        and 'chief' not in resolver.cluster_spec().as_dict()
    )


def worker_name(strategy: tf.distribute.Strategy) -> str | None:
    """A name of this process among several, such as 'worker1'; None for the one that writes."""
    resolver = strategy.cluster_resolver
    return None if is_chief(strategy) else f'{resolver.task_type}{resolver.task_id}'


def spans_workers(strategy: tf.distribute.Strategy) -> bool:
    """Whether `strategy` runs in several processes, each of which runs this program."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def all_agree(strategy: tf.distribute.Strategy, agrees: bool) -> bool:
    """Whether `agrees` is true in all workers; returns when all of them have called it."""
    if not spans_workers(strategy):
        return agrees
    return bool(_mean_of(strategy)(tf.constant(float(agrees))).numpy() == 1)


@functools.cache  # called after every batch, and tracing takes longer than a call
def _mean_of(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    """The function: scalar float32 of this worker -> mean over all replicas."""

    @tf.function
    def mean(value: tf.Tensor) -> tf.Tensor:
        values = strategy.run(lambda: value)
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, values, axis=None)

    return mean


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns when all workers have called it."""
    all_agree(strategy, True)


def distribute(
    strategy: tf.distribute.Strategy, batches: Callable[[int, int], tf.data.Dataset]
) -> tf.distribute.DistributedDataset | tf.data.Dataset:
    """Gives each replica its share of every global batch.

    Args:
        strategy: of the run.
        batches: (worker, workers) -> that worker's rows of each global batch.
    """
    one_device = isinstance(strategy, tf.distribute.OneDeviceStrategy)
    if one_device and not has_accelerators(strategy):
        # Batches are already on the device; tf.distribute's iterator would copy them. Destroying
        # it, or any iterator with autotuning, sometimes blocks for half the time it was in use, up
        # to a minute: the tuning thread keeps sleeping if it misses the cancellation.
        options = tf.data.Options()
        options.autotune.enabled = False
        return batches(0, 1).with_options(options)

    def share(context: tf.distribute.InputContext) -> tf.data.Dataset:
        workers = context.num_input_pipelines
        dataset = batches(context.input_pipeline_id, workers)
        replicas = strategy.num_replicas_in_sync // workers
        if replicas == 1:
            return dataset
        rows = tf.nest.flatten(dataset.element_spec)[0].shape[0]
        return dataset.rebatch(rows // replicas, drop_remainder=True)

    return strategy.distribute_datasets_from_function(share)


def _tpu_strategy(config: DeviceConfig) -> tf.distribute.Strategy:
    address = config.tpu_name or config.master
    if not address and not tf.config.list_physical_devices('TPU'):
        raise UserError(
            '--strategy=tpu expects an attached TPU, --tpu_name or --master; found none of them. '
            'Name the TPU, or leave --strategy out to run on the devices that are there.'
        )

    def connect() -> tf.distribute.cluster_resolver.ClusterResolver:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            address or 'local', zone=config.tpu_zone, project=config.gcp_project
        )
        if address:
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return resolver

    seconds = config.connect_timeout
    if address:
        print(
            f'Waiting up to {seconds} s (--connect_timeout) for the TPU at {address}.', flush=True
        )
    try:
        if address and address.startswith('grpc://'):
            flag = '--tpu_name' if config.tpu_name else '--master'
            place = connections.split_address(address, flag)
            connections.ask(*place, min(seconds, connections.SECONDS_TO_ANSWER))
        resolver = connections.bounded(connect, seconds)
    except (ValueError, tf.errors.OpError, RuntimeError, OSError, ImportError) as error:
        raise UserError(
            f'No TPU could be reached at {address or "this machine"} ({one_line(error)}). '
            'Check --tpu_name or --master, --tpu_zone and --gcp_project.'
        ) from error
    return tf.distribute.TPUStrategy(resolver)


@contextlib.contextmanager
def together(strategy: tf.distribute.Strategy, folder: str) -> Iterator[None]:
    """Turns the errors that follow from the loss of another worker into a UserError.

    Args:
        strategy: with a single worker, errors are not changed.
        folder: of the run; the message names its last checkpoint.

    Raises:
        UserError: when another worker is gone.
    """
    try:
        yield
    except LOST as error:
        if not spans_workers(strategy):
            raise
        raise UserError(
            f'All workers must run together, but another one is gone: {one_line(error)}. Stop all '
            'of them, then run the same commands to resume. The last checkpoint: '
            f'{_last_checkpoint(folder)}.'
        ) from error


@contextlib.contextmanager
def within_memory(doing: str, folder: str, advice: str) -> Iterator[None]:
    """Turns out-of-memory errors into a UserError that says what to try.

    Args:
        doing: 'training', 'evaluation' or 'export'.
        folder: of the run; the message names its last checkpoint.
        advice: what to try, see `out_of_memory.advice_for`.

    Raises:
        UserError: when the memory of the host or of a device is exhausted.
    """
    try:
        yield
    except (MemoryError, tf.errors.OpError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f'The {doing} must fit into memory, but ran out of it: {one_line(error)}. '
            f'{advice} The last checkpoint: {_last_checkpoint(folder)}.'
        ) from error


def _last_checkpoint(folder: str) -> str:
    """Its path, for messages."""
    return next(reversed(checkpoints_in(folder)), 'none was written yet')


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether `strategy` runs on TPUs."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def has_accelerators(strategy: tf.distribute.Strategy) -> bool:
    """Whether replicas run on GPUs or TPUs."""
    return is_tpu(strategy) or any(
        tf.DeviceSpec.from_string(name).device_type == 'GPU'
        for name in strategy.extended.worker_devices
    )


def replicas_here(strategy: tf.distribute.Strategy) -> int:
    """Number of replicas in this process."""
    return len(strategy.extended.worker_devices)


def check_divisible(strategy: tf.distribute.Strategy, **batch_sizes: int) -> None:
    """Raises UserError unless every global batch divides evenly among the replicas."""
    replicas = strategy.num_replicas_in_sync
    for name, size in batch_sizes.items():
        if size % replicas:
            raise UserError(
                f'--{name} must be a multiple of the number of replicas, {replicas}; found {size}. '
                f'Try {size // replicas * replicas or replicas}.'
            )
