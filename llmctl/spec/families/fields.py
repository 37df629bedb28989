"""Fields: the keys of one config.json, checked as they are read; all that is wrong is said at once."""

import math

from llmctl.errors import Exit, UserError

Required = type("Required", (), {})
_REQUIRED = Required()


class Fields:
    """Reads a config.json's keys and gathers what is missing, mistyped or not implemented, for `check` to raise.

    Args:
        json: the parsed config.json.
        kind: its model_type, for messages.
    """

    def __init__(self, json: dict[str, object], kind: str):
        self.json = json
        self.kind = kind
        self.missing: list[str] = []
        self.wrong: list[str] = []
        self.refused: list[str] = []

    def has(self, *keys: str) -> bool:
        """Whether one of the keys is there and not null."""
        return any(self.json.get(key) is not None for key in keys)

    def count(self, *keys: str, default: "int | Required | None" = _REQUIRED) -> int:
        """A whole number from 1 up, under the first of `keys` that is there; null counts as absent."""
        value = self._first(keys, default, 1)
        if value is not None and (type(value) is not int or not 1 <= value <= 1 << 31):
            self.wrong.append(f"{keys[0]} is {_short(value)}, wanted a whole number from 1 to 2^31")
            return 1
        return value  # type: ignore[return-value]

    def number(self, *keys: str, default: "float | Required | None" = _REQUIRED, least: float = 0.0) -> float:
        """A finite number, at least `least`."""
        value = self._first(keys, default, 1.0)
        if value is None:
            return None  # type: ignore[return-value]
        if type(value) not in (int, float) or not math.isfinite(value) or value < least:  # type: ignore[operator]
            self.wrong.append(f"{keys[0]} is {_short(value)}, wanted a number from {least:g} up")
            return 1.0
        return float(value)  # type: ignore[arg-type]

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers, none below 0."""
        value = self._first((key,), _REQUIRED, [])
        good = isinstance(value, list) and all(type(one) in (int, float) and 0 <= one < math.inf for one in value)
        if not good:
            self.wrong.append(f"{key} is {_short(value)}, wanted a list of numbers from 0 up")
            return ()
        return tuple(map(float, value))  # type: ignore[call-overload]

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._first((key,), default, default)
        if type(value) is not bool:
            self.wrong.append(f"{key} is {_short(value)}, wanted true or false")
            return default
        return value

    def one_of(self, key: str, known: dict[str, str], default: str) -> str:
        """A word that `known` translates to ours."""
        value = self._first((key,), default, default)
        if not isinstance(value, str) or value not in known:
            self.refused.append(f"{key} {_short(value)} (known: {', '.join(known)})")
            return known[default]
        return known[value]

    def token(self, key: str, default: int | None = None) -> int | None:
        """One token id or null; an absent key is `default`."""
        ids = self.tokens(key, () if default is None else (default,))
        return ids[0] if ids else None

    def tokens(self, key: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Token ids: null, one, or a list; an absent key is `default`."""
        if key not in self.json:
            return default
        value = self.json[key]
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(token) is int and -(1 << 31) <= token < 1 << 31 for token in ids):
            self.wrong.append(f"{key} is {_short(value)}, wanted a token id, a list of them, or null")
            return ()
        return tuple(token for token in ids if token >= 0)  # -1 is an old spelling of none

    def refuse(self, key: str, *harmless: object) -> None:
        """A key that changes what the model computes in a way not implemented, unless it is absent or harmless."""
        value = self.json.get(key)
        if value is not None and not any(type(value) is type(one) and value == one for one in harmless):
            self.refused.append(f"{key} {_short(value)}")

    def refuse_foreign(self) -> None:
        """Keys of any model type that change what is computed, or how the weights are stored."""
        self.refuse("quantization_config")
        self.refuse("compression_config")
        self.refuse("is_causal", True)
        self.refuse("add_cross_attention", False)

    def check(self) -> None:
        """Raise what was gathered.

        Raises:
            UserError: keys missing, of the wrong type or range, or not implemented.
        """
        if self.missing:
            raise UserError(
                f"config.json of model_type {self.kind} lacks {', '.join(self.missing)}.",
                "Copy the config.json that belongs to the weights.",
                Exit.MISMATCH,
            )
        if self.wrong:
            raise UserError(
                f"config.json of model_type {self.kind}: {'; '.join(self.wrong)}.",
                "Copy the config.json that belongs to the weights.",
                Exit.MISMATCH,
            )
        if self.refused:
            raise UserError(
                f"config.json of model_type {self.kind} asks for what llmctl does not compute: "
                f"{'; '.join(self.refused)}.",
                "Use another checkpoint; ignoring this would give other results than the model was trained for.",
                Exit.MISMATCH,
            )

    def _first(self, keys: tuple[str, ...], default: object, stand_in: object) -> object:
        for key in keys:
            if self.json.get(key) is not None:
                return self.json[key]
        if isinstance(default, Required):
            self.missing.append(keys[0])
            return stand_in
        return default


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
