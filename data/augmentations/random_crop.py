"""Random resized crop (SimCLR appendix A, arXiv:2002.05709; Szegedy et al., arXiv:1409.4842)."""

from __future__ import annotations

import tensorflow as tf

from data.images import resize

_ASPECT_RATIOS = (3 / 4, 4 / 3)
_ATTEMPTS = 100


def random_crop(
    image: tf.Tensor, seed: tf.Tensor, *, size: int, area: tuple[float, float]
) -> tf.Tensor:
    """Crops a random box from one image and resizes it (bicubic).

    The box has a width / height ratio in [3/4, 4/3] and a share of the image's area in `area`. If
    100 attempts find no such box, it is the whole image.

    Args:
        image: [h, w, 3] float32 in [0, 1], or integers as stored: only the crop is converted.
        seed: [2] int32.
        size: height and width of the result, in pixels.
        area: smallest and largest share of the image's area. If the largest is 1, boxes below 1.25
            times the smallest, or below 0.1 if that is less, are redrawn: the published program
            draws from 0.08 of the area on, but redraws below 0.1.

    Returns:
        [size, size, 3] float32 in [0, 1].
    """
    whole_image = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        whole_image,
        seed=seed,
        min_object_covered=min(0.1, 1.25 * area[0]) if area[1] == 1 else 0.0,
        aspect_ratio_range=_ASPECT_RATIOS,
        area_range=area,
        max_attempts=_ATTEMPTS,
        use_image_if_no_bounding_boxes=True,
    )
    # The graph loses the number of channels.
    crop = tf.ensure_shape(tf.slice(image, begin, extent), [None, None, 3])
    return resize(crop, size)
