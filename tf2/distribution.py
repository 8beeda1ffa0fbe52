"""The strategy a run uses, and communication between its replicas."""

from __future__ import annotations

import tensorflow as tf

from settings import UserError
from tf2.config import TrainConfig


def build_strategy(config: TrainConfig) -> tf.distribute.Strategy:
    """The strategy for the devices that are there: TPU, several GPUs, else one device.

    Raises:
        UserError: if `use_tpu` asks for a TPU that cannot be reached.
    """
    if _wants_tpu(config):
        return _tpu_strategy(config)
    gpus = tf.config.list_logical_devices('GPU')
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy(gpus)
    return tf.distribute.OneDeviceStrategy(gpus[0].name if gpus else '/cpu:0')


def _wants_tpu(config: TrainConfig) -> bool:
    if config.use_tpu is not None:
        return config.use_tpu
    return bool(config.tpu_name or config.master or tf.config.list_physical_devices('TPU'))


def _tpu_strategy(config: TrainConfig) -> tf.distribute.Strategy:
    address = config.tpu_name or config.master
    if not address and not tf.config.list_physical_devices('TPU'):
        raise UserError(
            '--use_tpu=True expects an attached TPU, --tpu_name or --master; found none of them. '
            'Name the TPU, or leave --use_tpu out to run on what is there.'
        )
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            address or 'local', zone=config.tpu_zone, project=config.gcp_project
        )
        if address:
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, tf.errors.OpError, RuntimeError, OSError, ImportError) as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise UserError(
            f'No TPU could be reached at {address or "this machine"} ({reason}). '
            'Check --tpu_name or --master, --tpu_zone and --gcp_project.'
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether `strategy` runs on TPUs."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def mean_over_replicas(value: tf.Tensor) -> tf.Tensor:
    """The mean of every replica's `value`, of any shape; to be called in a replica context."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, value)


def check_divisible(strategy: tf.distribute.Strategy, **batch_sizes: int) -> None:
    """Raises UserError unless every global batch splits evenly over the replicas."""
    replicas = strategy.num_replicas_in_sync
    for name, size in batch_sizes.items():
        if size % replicas:
            raise UserError(
                f'--{name} must be a multiple of the number of replicas, {replicas}; found {size}. '
                f'Try {size // replicas * replicas or replicas}.'
            )


def all_gather(local: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor | int]:
    """Concatenates `local` [n, ...] of all replicas, in their order.

    Gradients flow back through it to every replica. To be called in a replica context.

    Returns:
        All rows [n * replicas, ...], and the index of this replica's first row among them.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return local, 0
    offset = context.replica_id_in_sync_group * tf.shape(local)[0]
    return context.all_gather(local, axis=0), offset
