"""Settings of models, methods, optimizers, training, outputs, evaluation and devices."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

from common.errors import UserError
from common.methods import MethodEntry
from common.registry import load
from common.settings import INFERENCE, check_options, option
from common.stages import FIRST, STAGES, Stage
from common.views import Crops, View, with_crops
from tf2.evaluators import DEFAULT, names_in
from tf2.methods import METHODS, count_head_layers, entry_of
from tf2.models import BACKBONES, BackboneEntry
from tf2.models.resnet_sizes import RESNET_DEPTHS
from tf2.optimizers import OPTIMIZERS

# oneDNN's batch normalization in bfloat16 processes this many channels at once. For other than
# multiples of it, it took ten times as long as in float32.
NORM_VECTOR = 16
LOGITS_AT_A_TIME = 2**24  # of NT-Xent: 64 MiB
# What --checkpoint takes, in messages.
WEIGHTS = 'a --model_dir, a checkpoint prefix, an exported module or official SimCLR weights'


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The encoder and its heads (SimCLRv2 section 2, arXiv:2006.10029)."""

    backbone: str = option(
        'resnet', 'Kind of encoder.', choices=BACKBONES, modes=('export',), resume='fixed'
    )
    resnet_depth: int = option(
        50, 'Depth of the ResNet encoder.', choices=RESNET_DEPTHS, modes=('export',), resume='fixed'
    )
    width_multiplier: int | float = option(
        1,
        'Factor on every channel count of the ResNet; fractions such as 0.25 are allowed.',
        above=0,
        at_most=10_000,
        modes=('export',),
        resume='fixed',
    )
    sk_ratio: float = option(
        0.0,
        'Selective kernels: bottleneck ratio of their attention (SimCLRv2 uses 0.0625); 0 turns '
        'them off.',
        at_least=0,
        at_most=1,
        modes=('export',),
        resume='fixed',
    )
    se_ratio: float = option(
        0.0,
        'Squeeze-and-excitation: bottleneck ratio; 0 turns it off.',
        at_least=0,
        at_most=1,
        modes=('export',),
        resume='fixed',
    )
    proj_head_mode: str = option(
        'nonlinear',
        'Kind of projection head.',
        choices=('none', 'linear', 'nonlinear'),
        modes=('export',),
        resume='fixed',
    )
    proj_out_dim: int = option(
        128, 'Width of the projection.', at_least=1, modes=('export',), resume='fixed'
    )
    num_proj_layers: int = option(
        3,
        'Number of layers of the nonlinear projection head.',
        at_least=1,
        at_most=1000,
        modes=('export',),
        resume='fixed',
    )
    proj_hidden_dim: int = option(
        0,
        'Width of the hidden layers of the projection head; 0 is that of the representation.',
        at_least=0,
        modes=('export',),
        resume='fixed',
    )
    ft_proj_selector: int = option(
        0,
        'Which projection head layer feeds the classifier: 0 is the encoder '
        'output, k the output of layer k after its ReLU, -1 the projection itself.',
        at_least=-1,
        modes=('export', *INFERENCE),
    )
    global_bn: bool = option(
        True, 'Batch normalization statistics over all replicas.', modes=('export',)
    )
    batch_norm_decay: float = option(
        0.9,
        'Momentum of the moving batch normalization statistics.',
        at_least=0,
        below=1,
        modes=('export',),
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.backbone_entry.check is not None:
            load(self.backbone_entry.check)(self)

    @property
    def backbone_entry(self) -> BackboneEntry:
        """The encoder's entry in `BACKBONES`."""
        return BACKBONES[self.backbone]

    @property
    def title(self) -> str:
        """Display name of the encoder, such as 'ResNet-50 (width 1)'."""
        return (self.backbone_entry.title or self.backbone).format(**vars(self))

    @property
    def blocks(self) -> int:
        """Number of the encoder's blocks after the stem."""
        return load(self.backbone_entry.blocks)(self)

    @property
    def head_layers(self) -> int:
        """Number of layers of the default projection head."""
        return {'none': 0, 'linear': 1, 'nonlinear': self.num_proj_layers}[self.proj_head_mode]


@dataclasses.dataclass(frozen=True)
class LearningConfig:
    """What is trained and by which loss (SimCLR section 2.1, arXiv:2002.05709)."""

    train_mode: str = option(
        FIRST,
        'Stage of the training.',
        choices=STAGES,
        resume='fixed',
    )
    method: str = option(
        'simclr',
        'Pretraining method, see below.',
        choices=METHODS,
        resume='fixed',
    )
    checkpoint: str | None = option(
        None,
        'Weights to start from if --model_dir has none: another --model_dir, a checkpoint, an '
        'exported module, or published weights as a TF1 or TF2 checkpoint or TF2 SavedModel.',
        modes=('export', *INFERENCE, 'search'),
        resume='fixed',
    )
    fine_tune_after_block: int = option(
        -1,
        'Fine-tuning and distillation: train from this block of the encoder on; -1 trains '
        'everything, the number of blocks (4 in ResNets) the classifier only.',
        at_least=-1,
        resume='fixed',
    )
    zero_init_logits_layer: bool = option(
        False,
        'Fine-tuning and distillation: start the classifier at zero.',
    )
    teacher: str | None = option(
        None,
        'Distillation: the network to learn from. Anything --checkpoint takes, if it has a '
        'classifier, or a SavedModel or TF-Hub handle that returns logits.',
        modes=('eval',),
    )
    safe_weights: bool = option(
        False,
        "Distillation: refuse a --teacher that is another program's SavedModel, which runs as code "
        'with your rights.',
        modes=('eval',),
        resume='free',
    )
    teacher_view: str = option(
        'student',
        'Distillation: what the teacher sees, the augmented view of the student or the evaluation '
        'view.',
        choices=('student', 'eval'),
    )
    distill_alpha: float = option(
        1.0,
        'Distillation: weight of the teacher; 1 - alpha is that of the labels. 1 needs none.',
        at_least=0,
        at_most=1,
    )
    distill_temperature: float = option(
        1.0,
        'Distillation: temperature of both softmaxes; SimCLRv2 uses 0.1 for a student with the '
        "teacher's architecture, 1 for a smaller one.",
        above=0,
        at_most=1000,
    )
    distill_temperature_squared: bool = option(
        True,
        "Distillation: multiply the teacher's term by the squared temperature, as the published "
        'program does and the paper does not.',
    )
    global_crops: int = option(
        2,
        'Number of random crops of each image at --image_size. Where a method compares a view with '
        'a target, the targets are those of global crops.',
        at_least=2,
        at_most=64,
        resume='fixed',
    )
    local_crops: int = option(
        0,
        'Number of further, smaller crops of each image (multi-crop, arXiv:2006.09882), which are '
        'compared with the global ones.',
        at_least=0,
        at_most=64,
    )
    local_crop_size: int = option(
        96,
        'Height and width of local crops in pixels; less than --image_size.',
        at_least=1,
        requires={'local_crops': ()},
    )
    global_crop_area: str | None = option(
        None,
        'Smallest and largest share of the image area in a global crop, as in 0.14,1. Unset: from '
        '--crop_min_area to 1.',
    )
    local_crop_area: str = option(
        '0.05,0.14',
        'Smallest and largest share of the image area in a local crop.',
        requires={'local_crops': ()},
    )
    temperature: float = option(
        0.1, 'Temperature of the softmax over similarities.', above=0, at_most=1000
    )
    hidden_norm: bool = option(True, 'Scale projections to length 1 before NT-Xent.')
    memory_size: int = option(
        0,
        "Pretraining: number of additional negatives, a momentum encoder's projections of earlier "
        'images; a multiple of --train_batch_size. 0 turns it off; SimCLRv2 and MoCo use 65536.',
        at_least=0,
        resume='fixed',
    )
    momentum_encoder_decay: float = option(
        0.999,
        'With --memory_size: decay of the moving averages that make up the momentum encoder.',
        at_least=0,
        below=1,
        requires={'memory_size': ()},
    )
    export_momentum_encoder: bool = option(
        False,
        'With --memory_size: export the momentum encoder too, to momentum_saved_model/N.',
        requires={'memory_size': ()},
        resume='free',
    )
    predictor_hidden_dim: int = option(
        4096,
        'Width of the hidden layer of the predictor, which maps the projection of one view to that '
        'of another.',
        at_least=1,
        resume='fixed',
    )
    fixed_predictor_rate: bool = option(
        True,
        "Whether the predictor's learning rate stays at its peak instead of decaying.",
    )
    target_decay: float = option(
        0.996,
        'Decay of the moving averages that make up the target network, at the start; it rises to 1 '
        'along a cosine.',
        at_least=0,
        at_most=1,
    )
    norm_parts: int = option(
        1,
        'Number of parts of the global batch with batch normalization statistics of their own, '
        'instead of --global_bn; a multiple of the number of replicas. A query and its key are in '
        'parts of other images, so that statistics do not tell which key is its own. 1: the whole '
        'batch.',
        at_least=1,
        at_most=1024,
    )
    bank_loss: str = option(
        'nce',
        'How an image is told from the others in the memory bank: noise-contrastive estimation '
        'with rows drawn at random, or a softmax over such rows or over all.',
        choices=('nce', 'softmax'),
    )
    bank_negatives: int = option(
        4096,
        'Number of rows of the memory bank that are drawn for each image; 0 takes all of them, '
        'for a softmax.',
        at_least=0,
    )
    bank_momentum: float = option(
        0.5,
        'Share of the old row when a feature is averaged into the memory bank.',
        at_least=0,
        below=1,
    )
    proximal_weight: float = option(
        0.0,
        'Weight of the squared distance between a feature and its row of the memory bank. The '
        'paper of InstDisc has this term, its program has not.',
        at_least=0,
    )
    negative_weight: float = option(
        1.0,
        'InvaSpread: weight of the other images of a batch, in the softmax and in the loss.',
        at_least=1,
        at_most=1000,
    )
    prototypes: int = option(
        3000,
        'Number of prototypes to which images are assigned; at most the number of training images.',
        at_least=2,
        resume='fixed',
    )
    freeze_prototypes_epochs: float = option(
        1.0,
        'Epochs at the start in which the prototypes keep their random directions.',
        at_least=0,
        at_most=1_000_000,
    )
    sinkhorn_epsilon: float = option(
        0.05,
        'Smoothness of the assignments to prototypes: the smaller, the closer each is to a single '
        'prototype. Try 0.03 if the loss stays at the logarithm of --prototypes.',
        at_least=0.02,
        at_most=10,
    )
    sinkhorn_iterations: int = option(
        3,
        'How often the assignments are scaled so that all prototypes get equal shares.',
        at_least=1,
        at_most=100,
    )
    queue_size: int = option(
        0,
        'Number of earlier images that are assigned along with each batch, for batches smaller '
        'than --prototypes; a multiple of --train_batch_size. 0: none.',
        at_least=0,
        resume='fixed',
    )
    queue_start_epoch: float = option(
        15.0,
        'Epoch from which on the queue of --queue_size is used, once it is full.',
        at_least=0,
        at_most=1_000_000,
        requires={'queue_size': ()},
    )
    lineareval_while_pretraining: bool = option(
        True,
        'While pretraining, also train a linear classifier that sends no gradient to the encoder.',
    )

    def __post_init__(self) -> None:
        check_options(self)
        _ = self.crops  # refuses areas that aren't any
        if self.stage.has_teacher and not self.teacher:
            raise UserError(
                f'--train_mode={self.train_mode} needs a --teacher, the fine-tuned network to '
                'learn from; found none. Give the --model_dir of its run, or an exported module.'
            )
        if self.bank_loss == 'nce' and not self.bank_negatives:
            raise UserError(
                '--bank_negatives must be above 0 with --bank_loss=nce; found 0. Give '
                '--bank_loss=softmax to compare with the whole memory bank.'
            )

    @property
    def crops(self) -> Crops:
        """Number, size and area of the crops of each image, for a method that takes them."""
        area = self.global_crop_area
        return Crops(
            self.global_crops,
            self.local_crops,
            self.local_crop_size,
            None if area is None else _area('global_crop_area', area),
            _area('local_crop_area', self.local_crop_area),
        )

    @property
    def views(self) -> tuple[View, ...]:
        """The views of each image: those of the method, or as many crops as it is to have."""
        entry = self.entry
        if entry.local_view is None:
            return entry.views
        return with_crops(entry.views, entry.local_view, self.crops)

    @property
    def stage(self) -> Stage:
        """The stage that `train_mode` names."""
        return STAGES[self.train_mode]

    @property
    def entry(self) -> MethodEntry:
        """The entry of the method, which some stages fix."""
        return entry_of(self.train_mode, self.method)

    def count_head_layers(self, model: ModelConfig) -> int:
        """Number of layers of the projection head, that of `method` in every stage."""
        return count_head_layers(self.method, model)

    @property
    def learns_from_labels(self) -> bool:
        """Whether labels change what is trained."""
        return self.stage.learns_from_labels(self.distill_alpha)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Update rule and learning rate schedule (SimCLR section 2.2, arXiv:2002.05709)."""

    optimizer: str = option('lars', 'Update rule.', choices=OPTIMIZERS, resume='fixed')
    learning_rate: float = option(
        0.3,
        'Base learning rate, before it is scaled by the batch size.',
        at_least=0,
        at_most=10_000,
    )
    learning_rate_scaling: str = option(
        'linear',
        'Peak rate: linear is base * batch / 256, sqrt is base * sqrt(batch).',
        choices=('linear', 'sqrt'),
    )
    warmup_epochs: float = option(
        10.0, 'Epochs of linear warm-up before the cosine decay.', at_least=0, at_most=1_000_000
    )
    learning_rate_schedule: str = option(
        'cosine',
        'What follows the warm-up: "cosine", a decay to 0, or drops, as in 0.6:0.1,0.8:0.01, which '
        'multiplies the peak rate by 0.1 after 60% of the run and by 0.01 after 80%.',
    )
    weight_decay: float = option(
        1e-6,
        'Weight decay: of kernels with lars and lamb, of kernels and biases with momentum and '
        'adam, of everything with sgd.',
        at_least=0,
        at_most=10,
        modes=('export',),
    )
    momentum: float = option(
        0.9,
        'Momentum of lars, of momentum (Nesterov) and of sgd (as in PyTorch).',
        at_least=0,
        below=1,
        requires={'optimizer': ('momentum', 'lars', 'sgd')},
    )
    rate_in_velocity: bool = option(
        True,
        'LARS: whether the velocity holds gradients times the learning rate of their step, as in '
        "SimCLR's program, or gradients alone, as in BYOL's.",
        requires={'optimizer': ('lars',)},
    )

    def __post_init__(self) -> None:
        check_options(self)
        places = [0.0, *(place for place, _ in self.drops), 1.0]
        if any(before >= after for before, after in itertools.pairwise(places)):
            raise self._unknown_schedule()

    @property
    def drops(self) -> tuple[tuple[float, float], ...]:
        """Share of the run -> factor on the peak rate from there on; empty for a cosine."""
        if self.learning_rate_schedule == 'cosine':
            return ()
        pairs = [pair.split(':') for pair in self.learning_rate_schedule.split(',')]
        try:
            drops = tuple((float(place), float(factor)) for place, factor in pairs)
        except ValueError as error:
            raise self._unknown_schedule() from error
        if not all(0 <= factor <= 1 for _, factor in drops):
            raise self._unknown_schedule()
        return drops

    def _unknown_schedule(self) -> UserError:
        return UserError(
            '--learning_rate_schedule must be cosine, or pairs share:factor such as '
            '0.6:0.1,0.8:0.01, with growing shares of the run between 0 and 1, and factors from 0 '
            f'to 1; found {self.learning_rate_schedule!r}.'
        )

    @staticmethod
    def that_fix_rates() -> list[str]:
        """Optimizers with which some variables can have a constant learning rate."""
        return [name for name, entry in OPTIMIZERS.items() if entry.fixes_rates]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, precision and reproducibility of the training."""

    train_batch_size: int = option(
        512,
        'Global training batch, over all replicas; the default is at most the number of examples.',
        at_least=1,
        resume='continue',
    )
    train_epochs: int = option(
        100, 'Epochs to train for.', at_least=1, at_most=1_000_000, resume='continue'
    )
    train_steps: int = option(
        0,
        'Steps to train for; overrides --train_epochs when above 0.',
        at_least=0,
        at_most=1_000_000_000,
        resume='continue',
    )
    seed: int = option(
        0,
        'Seed of initialization, data order and augmentation.',
        at_least=0,
        at_most=2**32 - 1,
    )
    mixed_precision: str = option(
        'auto',
        'Precision of convolutions and dense layers; loss, softmax, statistics and weights stay '
        'float32. auto: bfloat16 if the hardware computes in it (TPUs, GPUs from compute '
        'capability 8.0 on, CPUs with AVX512-BF16 or AMX), else float32; a resumed run keeps what '
        'it started with. float16 scales the loss.',
        choices=('auto', 'float32', 'bfloat16', 'float16'),
        modes=('eval', *INFERENCE, 'search'),
        resume='continue',
    )
    jit_compile: bool = option(False, 'Compile the training step with XLA.', resume='free')
    steps_per_loop: int = option(
        0,
        'Steps per call of the compiled training function; 0 adapts it to the speed.',
        at_least=0,
        resume='free',
    )
    train_summary_steps: int = option(
        100, 'Steps between scalars in TensorBoard and lines in the log.', at_least=1, resume='free'
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclasses.dataclass(frozen=True)
class OutputConfig:
    """What a run writes, where and how often."""

    model_dir: str | None = option(
        None,
        'Folder for checkpoints, results, exports and TensorBoard. Unset: a new one under runs/.',
        modes=('eval', 'export', 'check', *INFERENCE, 'search'),
        resume='free',
    )
    checkpoint_epochs: int = option(
        1,
        'Epochs between checkpoints; the default is higher if epochs are short and many.',
        at_least=1,
        resume='free',
    )
    checkpoint_steps: int = option(
        0,
        'Steps between checkpoints; overrides --checkpoint_epochs when above 0.',
        at_least=0,
        resume='free',
    )
    keep_checkpoint_max: int = option(
        5, 'Number of checkpoints to keep; 0 keeps all.', at_least=0, resume='free'
    )
    keep_hub_module_max: int = option(
        1,
        'Number of exported modules to keep; 0 keeps all.',
        at_least=0,
        modes=('export',),
        resume='free',
    )
    report: bool = option(
        True,
        'Write report.html at the end: results, settings, data, curves, sample views, confusions, '
        'nearest neighbors and a map of the images, on one page.',
        resume='free',
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured, and on how much."""

    eval_batch_size: int = option(
        256, 'Global evaluation batch.', at_least=1, modes=('eval', *INFERENCE), resume='continue'
    )
    eval_steps: int = option(
        0,
        'Evaluation batches; 0 means the whole split.',
        at_least=0,
        modes=('eval',),
        resume='continue',
    )
    eval_name: str | None = option(
        None,
        'Name of this evaluation: its results and TensorBoard events go to a folder of that name '
        'below --model_dir.',
        modes=('eval',),
        resume='free',
    )
    evaluators: str = option(
        DEFAULT,
        'Measurements, separated by commas, see below. Those of the default are skipped if they '
        'lack labels, neighbors or a teacher.',
        modes=('eval',),
        resume='continue',
    )
    knn_neighbors: int = option(
        0,
        'Number of nearest neighbors to evaluate with; 0 turns it off. The default is at most the '
        'number of labeled training examples.',
        at_least=0,
        modes=('eval',),
        resume='continue',
    )
    knn_examples: int = option(
        20000,
        'Training examples among which nearest neighbors are searched.',
        at_least=1,
        modes=('eval',),
        requires={'knn_neighbors': ()},
        resume='continue',
    )

    def __post_init__(self) -> None:
        check_options(self)
        names_in(self.evaluators)
        if self.eval_name and not _is_name(self.eval_name):
            raise UserError(
                '--eval_name must be a folder name of letters, digits, periods, dashes and '
                f'underscores; found {self.eval_name!r}.'
            )


@dataclasses.dataclass(frozen=True)
class DeviceConfig:
    """Devices and hosts that a run executes on."""

    strategy: str = option(
        'auto',
        'Distribution strategy (tf.distribute). auto: tpu with --tpu_name, --master or an attached '
        'TPU, multi_worker with TF_CONFIG or in a SLURM step, mirrored with several GPUs, else '
        'one_device.',
        choices=('auto', 'one_device', 'mirrored', 'multi_worker', 'tpu'),
        modes=('eval', *INFERENCE),
        resume='free',
    )
    logical_devices: int = option(
        0,
        'Split the CPU, or the only GPU, into this many devices, to try out several replicas; 0 '
        'does not split.',
        at_least=0,
        at_most=256,
        modes=('eval', *INFERENCE),
        resume='free',
    )
    deterministic: bool = option(
        False,
        'Use only operations whose results repeat bit for bit. Slower; a run without it agrees '
        'within rounding.',
        modes=('eval', *INFERENCE),
        resume='free',
    )
    use_tpu: bool | None = option(
        None,
        'With --strategy=auto: true requires a TPU, false ignores it, unset uses it if available.',
        modes=('eval', *INFERENCE),
        resume='free',
    )
    tpu_name: str | None = option(
        None, 'Name of the Cloud TPU.', modes=('eval', *INFERENCE), resume='free'
    )
    tpu_zone: str | None = option(
        None,
        'Zone of the Cloud TPU.',
        modes=('eval', *INFERENCE),
        requires={'tpu_name': ()},
        resume='free',
    )
    gcp_project: str | None = option(
        None,
        'Google Cloud project of the Cloud TPU.',
        modes=('eval', *INFERENCE),
        requires={'tpu_name': ()},
        resume='free',
    )
    master: str | None = option(
        None,
        'Address of the TPU worker, instead of --tpu_name.',
        modes=('eval', *INFERENCE),
        resume='free',
    )
    connect_timeout: int = option(
        120,
        'Seconds to wait for a TPU, the other workers or a remote folder.',
        at_least=1,
        at_most=86_400,
        modes=('eval', 'export', 'check', *INFERENCE, 'search'),
        resume='free',
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.use_tpu is not None and self.strategy != 'auto':
            raise UserError(
                f'--use_tpu needs --strategy=auto; found --strategy={self.strategy}. Give only one '
                'of them.'
            )


def _area(name: str, text: str) -> tuple[float, float]:
    """The smallest and the largest area that setting `name` asks for, as in '0.05,0.14'.

    Raises:
        UserError: if that is not what it says.
    """
    try:
        low, high = map(float, text.split(','))
    except ValueError:
        low = high = math.nan
    if not 0 < low <= high <= 1:
        raise UserError(
            f'--{name} must be the smallest and the largest share of the image area, as in '
            f'0.05,0.14, above 0 and up to 1; found {text!r}.'
        )
    return low, high


def _is_name(text: str) -> bool:
    """Whether `text` is a plain folder name and not a path."""
    return bool(re.fullmatch(r'[A-Za-z0-9._-]+', text)) and text not in ('.', '..')
