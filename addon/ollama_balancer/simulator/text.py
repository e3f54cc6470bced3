"""Generated text: pseudo-words, the same for the same seed and prompt, so that an answer can be checked."""

import hashlib
import math
import random

ONSETS = ("b", "br", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v")
NUCLEI = ("a", "e", "i", "o", "u", "ai", "ea", "ou")
CODAS = ("", "n", "r", "l", "st", "m")
WORDS = tuple(f" {onset}{nucleus}{coda}" for onset in ONSETS for nucleus in NUCLEI for coda in CODAS)
"""768 tokens; like a real tokenizer's, each begins with a blank."""


def prompt_tokens(prompt: str) -> int:
    """A quarter of the prompt's bytes, at least 1."""
    return max(1, len(prompt.encode(errors="replace")) // 4)


def generate(seed: int, prompt: str, mean: float, limit: int | None = None) -> tuple[list[str], bool]:
    """The tokens of the answer to a prompt, and whether `limit` (tokens) cut it short.

    Lengths are uniform over 0.5 to 1.5 of `mean`. The text for a lower limit is a prefix of that for a higher one.
    """
    digest = hashlib.blake2b(prompt.encode(errors="replace"), digest_size=8, key=str(seed).encode()).digest()
    rng = random.Random(digest)
    length = max(1, round(mean * rng.uniform(0.5, 1.5)))
    wanted = length if limit is None else min(length, limit)
    return rng.choices(WORDS, k=wanted), wanted < length


DIMENSIONS = 64
"""Of the simulated embeddings."""


def embed(seed: int, text: str) -> list[float]:
    """A vector of length 1, the same for the same seed and text."""
    digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=8, key=str(seed).encode()).digest()
    rng = random.Random(digest)
    vector = [rng.gauss(0, 1) for _ in range(DIMENSIONS)]
    length = math.hypot(*vector) or 1.0
    return [round(x / length, 8) for x in vector]
