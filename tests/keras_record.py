"""Record what Keras's recurrent layers compute, for `test_keras.py`: inputs, weights, outputs and states.

    KERAS_BACKEND=torch python -m tests.keras_record > tests/keras_record.json

This needs Keras 3 with any backend. Numbers are written with the 9 digits that tell float32 numbers apart.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

I, H, T, B = 3, 4, 5, 2


def record(keras: Any) -> dict[str, Any]:
    """Everything is nested lists. `weights` has a list for each direction, `states` is what Keras returns."""
    draw = np.random.default_rng(1)
    options = {"return_sequences": True, "return_state": True}
    layers = {
        "GRU": keras.layers.GRU(H, reset_after=True, **options),
        "GRU, reset_after=False": keras.layers.GRU(H, reset_after=False, **options),
        "GRU, use_bias=False": keras.layers.GRU(H, use_bias=False, **options),
        "LSTM": keras.layers.LSTM(H, **options),
        "SimpleRNN": keras.layers.SimpleRNN(H, **options),
        "SimpleRNN, relu": keras.layers.SimpleRNN(H, activation="relu", **options),
        "Bidirectional LSTM": keras.layers.Bidirectional(
            keras.layers.LSTM(H, **options), merge_mode="concat"
        ),
    }
    x = draw.standard_normal((B, T, I)).astype(np.float32)
    cases = {}
    for name, layer in layers.items():
        layer.build(x.shape)
        shapes = [weight.shape for weight in layer.get_weights()]
        layer.set_weights([0.7 * draw.standard_normal(shape).astype(np.float32) for shape in shapes])
        directions = [layer.forward_layer, layer.backward_layer] if "Bidirectional" in name else [layer]
        output, *states = layer(x)
        cases[name] = {
            "weights": [[rounded(weight) for weight in one.get_weights()] for one in directions],
            "output": rounded(keras.ops.convert_to_numpy(output)),
            "states": [rounded(keras.ops.convert_to_numpy(state)) for state in states],
        }
    return {"keras": keras.__version__, "x": rounded(x), "layers": cases}


def rounded(array: Any) -> Any:
    """Nested lists of a float32 array."""
    if array.ndim:
        return [rounded(item) for item in array]
    return float(f"{array:.9g}")


def main() -> None:
    import keras

    recorded = record(keras)
    layers = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(case)}" for name, case in recorded["layers"].items()
    )
    head = f'"keras": "{recorded["keras"]}",\n"x": {json.dumps(recorded["x"])}'
    print(f'{{{head},\n"layers": {{\n{layers}\n}}}}')


if __name__ == "__main__":
    main()
