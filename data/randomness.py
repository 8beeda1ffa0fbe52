"""Random numbers as a pure function of seeds, for one image or a whole batch.

TensorFlow's stateless operations take one seed per call, but every image of a batch needs its own.
So the draws come from Threefry-2x32 with 20 rounds (Salmon et al., "Parallel Random Numbers: As
Easy as 1, 2, 3", SC 2011), implemented with integer operations on the whole batch.
"""

from __future__ import annotations

import zlib

import tensorflow as tf

_MASK = 0xFFFFFFFF
_PARITY = 0x1BD11BDA
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_BLOCKS = 5  # of four rounds
_PAIR_BITS = 16
MOST_DRAWS = 2 << (31 - _PAIR_BITS)  # so that a key stays an int32
_WORDS = tf.TensorSpec([None, 2], tf.int64)


# A tf.function, so that its many small operations are traced only once. It is not inlined, since
# each of a dozen uses would be optimized again whenever a pipeline starts. The blocks are a loop,
# because XLA takes half a minute to compile them unrolled.
@tf.function(
    input_signature=[_WORDS, _WORDS],
    autograph=False,
    experimental_attributes={'_noinline': True},
)
def threefry(key: tf.Tensor, counter: tf.Tensor) -> tf.Tensor:
    """Threefry-2x32-20: encrypts every `counter` with its `key`.

    Args:
        key: [n, 2] int64, words in [0, 2^32).
        counter: [n, 2] int64, words in [0, 2^32).

    Returns:
        [n, 2] int64, words in [0, 2^32).
    """
    first, second = key[:, 0], key[:, 1]
    schedule = tf.stack([first, second, first ^ second ^ _PARITY])  # [3, n]
    rotations = tf.constant(_ROTATIONS, tf.int64)

    def rounds(block: tf.Tensor, x: tf.Tensor, y: tf.Tensor) -> tuple[tf.Tensor, ...]:
        bits = rotations[block % 2]
        for turn in range(len(_ROTATIONS[0])):
            x = (x + y) & _MASK
            y = _rotate_left(y, bits[turn]) ^ x
        x = (x + schedule[(block + 1) % 3]) & _MASK
        y = (y + schedule[(block + 2) % 3] + tf.cast(block + 1, tf.int64)) & _MASK
        return block + 1, x, y

    x, y = (counter[:, 0] + first) & _MASK, (counter[:, 1] + second) & _MASK
    _, x, y = tf.while_loop(lambda block, *_: block < _BLOCKS, rounds, (0, x, y))
    return tf.stack([x, y], axis=-1)


def _rotate_left(word: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    left = tf.bitwise.left_shift(word, bits) & _MASK
    return left | tf.bitwise.right_shift(word, 32 - bits)


def uniform(seed: tf.Tensor, count: int, stream: str) -> tf.Tensor:
    """Uniform numbers in [0, 1) that depend only on the arguments.

    Args:
        seed: [2] or [b, 2] integers; one pair per image.
        count: number of draws per image.
        stream: name of the use. Draws of one seed for different uses are independent.

    Returns:
        [count] or [b, count] float32.
    """
    keys = tf.reshape(tf.cast(seed, tf.int64) & _MASK, [-1, 2])  # [b, 2]
    pairs = (count + 1) // 2  # each call gives two words
    name = zlib.crc32(stream.encode())
    counters = tf.constant([[index, name] for index in range(pairs)], tf.int64)  # [pairs, 2]
    counters = tf.tile(counters, [tf.shape(keys)[0], 1])
    words = threefry(tf.repeat(keys, pairs, axis=0), counters)  # [b · pairs, 2]
    # A float32 holds 24 bits without rounding up to 1.
    numbers = tf.cast(words // 256, tf.float32) * 2.0**-24
    numbers = tf.reshape(numbers, [-1, 2 * pairs])[:, :count]  # [b, count]
    return numbers[0] if seed.shape.rank == 1 else numbers


def epoch_key(seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """The key from which all randomness of one epoch is derived.

    Args:
        seed: the run's seed.
        epoch: scalar integer, counted from 0.

    Returns:
        Scalar int32.
    """
    words = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)]) & _MASK
    counter = tf.constant([[0, zlib.crc32(b'epoch')]], tf.int64)
    # Halved to fit into an int32.
    return tf.cast(threefry(words[tf.newaxis], counter)[0, 0] // 2, tf.int32)


def view_seed(key: tf.Tensor, index: tf.Tensor, draw: int) -> tf.Tensor:
    """The seed of one view of one example in one epoch.

    Args:
        key: scalar int32, from `epoch_key`.
        index: scalar int64, position of the example in the source.
        draw: the view's `View.draw`, from 0 to `MOST_DRAWS` - 1.

    Returns:
        [2] int32; for any one key, different for every (index, draw) up to 2^30 examples.

    Raises:
        ValueError: if `draw` is out of range.
    """
    if not 0 <= draw < MOST_DRAWS:
        raise ValueError(f'Expected a draw from 0 to {MOST_DRAWS - 1}; found {draw}.')
    pair, place = divmod(draw, 2)
    # Each pair of draws changes the key in its own way, so no two pairs share seeds.
    return tf.stack([key ^ (pair << _PAIR_BITS), tf.cast(2 * index + place, tf.int32)])
