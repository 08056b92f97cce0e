"""The Keras network of the published example, as `ddpm.unet` describes it, in a training step of TensorFlow."""

import math
from typing import Any

from bench.machine import LeftOutError
from bench.networks import NUM_IMAGES, NUM_TIMESTEPS, Setting, Step
from ddpm import linear_betas


def keras_loop(setting: Setting, xla: bool) -> Step:
    """The Keras network of the published example, in its own training step.

    Raises:
        ImportError: TensorFlow is not installed.
        LeftOutError: it is not built for the GPU.
    """
    import keras
    import tensorflow as tf

    if setting.device.type == "cuda":
        cards = tf.config.list_physical_devices("GPU")
        if not cards:
            raise LeftOutError("TensorFlow finds no GPU")
        for card in cards:
            tf.config.experimental.set_memory_growth(card, True)  # else it takes the whole memory, the others' too

    network = KerasUNet(setting, keras).model
    average = KerasUNet(setting, keras).model
    average.set_weights(network.get_weights())
    optimizer = keras.optimizers.Adam(2e-4)
    betas = tf.constant(linear_betas(NUM_TIMESTEPS).numpy(), tf.float32)
    cumprod = tf.math.cumprod(1.0 - betas)
    pixels = tf.constant(setting.pixels().permute(0, 2, 3, 1).numpy())

    @tf.function(jit_compile=xla)  # type: ignore[untyped-decorator]
    def step() -> Any:
        chosen = tf.random.uniform((setting.batch_size,), 0, NUM_IMAGES, tf.int32)
        x_0 = tf.image.random_flip_left_right(tf.cast(tf.gather(pixels, chosen), tf.float32) / 127.5 - 1.0)
        t = tf.random.uniform((setting.batch_size,), 0, NUM_TIMESTEPS, tf.int32)
        eps = tf.random.normal(tf.shape(x_0))
        signal = tf.reshape(tf.gather(cumprod, t), (-1, 1, 1, 1))
        with tf.GradientTape() as tape:
            predicted = network([tf.sqrt(signal) * x_0 + tf.sqrt(1.0 - signal) * eps, t], training=True)
            loss = tf.reduce_mean(tf.square(eps - predicted))
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
        for one, other in zip(average.trainable_variables, network.trainable_variables, strict=True):
            one.assign(0.999 * one + 0.001 * other)
        return loss

    return step  # type: ignore[no-any-return]


class KerasUNet:
    """Builds the network layer by layer."""

    def __init__(self, setting: Setting, keras: Any) -> None:
        self.keras, self.layers = keras, keras.layers
        self.config, self.image_size = setting.unet, setting.image_size
        image = self.layers.Input((setting.image_size, setting.image_size, 3))
        time = self.layers.Input((), dtype="int32")
        self.model = keras.Model([image, time], self._output(image, self._embedding(time)))

    def _output(self, image: Any, embedding: Any) -> Any:
        widths, attention = self.config.widths, self.config.attention
        x = self._conv(widths[0], 3)(image)
        skips = [x]
        for level, width in enumerate(widths):
            for _ in range(self.config.num_res_blocks):
                x = self._block(x, embedding, width, attention[level])
                skips.append(x)
            if level != len(widths) - 1:
                x = self._conv(width, 3, strides=2)(x)
                skips.append(x)
        x = self._block(x, embedding, widths[-1], has_attention=True)
        x = self._block(x, embedding, widths[-1], has_attention=False)
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(self.config.num_res_blocks + 1):
                x = self._block(self.layers.Concatenate()([x, skips.pop()]), embedding, width, attention[level])
            if level != 0:
                x = self._conv(width, 3)(self.layers.UpSampling2D(2)(x))
        return self._conv(3, 3, scale=0.0)(self._swish(self._norm()(x)))

    def _embedding(self, time: Any) -> Any:
        ops, dim = self.keras.ops, self.config.time_embedding_dim
        frequencies = ops.exp(-math.log(10_000.0) / (dim // 2 - 1) * ops.arange(dim // 2, dtype="float32"))
        angles = ops.cast(time, "float32")[:, None] * frequencies[None, :]
        sinusoids = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
        return self._dense(dim)(self._swish(self._dense(dim)(sinusoids)))

    def _block(self, x: Any, embedding: Any, width: int, has_attention: bool) -> Any:
        shortcut = x if x.shape[-1] == width else self._conv(width, 1)(x)
        h = self._conv(width, 3)(self._swish(self._norm()(x)))
        h = h + self._dense(width)(self._swish(embedding))[:, None, None, :]
        x = self._conv(width, 3, scale=0.0)(self._swish(self._norm()(h))) + shortcut
        return self._attention(x) if has_attention else x

    def _attention(self, x: Any) -> Any:
        ops, (height, width, channels) = self.keras.ops, x.shape[1:]
        pixels = self.layers.Reshape((height * width, channels))(self._norm()(x))
        query, key, value = (self._dense(channels)(pixels) for _ in range(3))
        scores = ops.matmul(query, ops.transpose(key, (0, 2, 1))) * channels**-0.5
        attended = self._dense(channels, scale=0.0)(ops.matmul(ops.softmax(scores), value))
        return x + self.layers.Reshape((height, width, channels))(attended)

    def _norm(self) -> Any:
        return self.layers.GroupNormalization(groups=self.config.norm_groups)

    def _swish(self, x: Any) -> Any:
        return self.keras.activations.swish(x)

    def _dense(self, width: int, scale: float = 1.0) -> Any:
        return self.layers.Dense(width, kernel_initializer=self._initializer(scale))

    def _conv(self, width: int, kernel: int, scale: float = 1.0, strides: int = 1) -> Any:
        initializer = self._initializer(scale)
        return self.layers.Conv2D(width, kernel, padding="same", strides=strides, kernel_initializer=initializer)

    def _initializer(self, scale: float) -> Any:
        return self.keras.initializers.VarianceScaling(max(scale, 1e-10), "fan_avg", "uniform")
