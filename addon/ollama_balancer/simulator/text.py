"""Answers of a simulated model: sentences that say what they are, made from the prompt and a seed, so that they can be
checked.
"""

import hashlib
import math
import random

SENTENCES = tuple(
    tuple(f" {word}" for word in sentence.split())
    for sentence in (
        "Simulated.",
        "Simulated text.",
        "That was simulated.",
        "This is simulated text.",
        "This sentence is simulated, too.",
        "A simulated host never gets tired.",
        "So much for a simulated answer today.",
        "These words come from a simulated Ollama host.",
        "No model has read your prompt; this is simulated.",
        "A simulated host answers as fast as a real one.",
        "The words are simulated here, and only their timing is real.",
        "Each word of a simulated answer counts as one token, as here.",
        "The same prompt gets the same simulated answer each time you send it.",
        "Everything between you and this simulated host is real: the balancer chose it.",
        "This host has no GPU.",
        "It only pretends to think.",
        "Whoever reads this is testing a balancer.",
        "Ask a real host for a real answer.",
        "Its speed is simulated as well as its words.",
        "You can watch where your prompts go on the dashboard.",
        "Send several prompts at once, and other simulated hosts will help.",
        "A real model would now explain something that you want to know.",
        "If you drain this host, the next answer comes from another simulated one.",
        "The numbers of tokens at the end are those of this simulated text.",
    )
)
"""Each word is a token; like a real tokenizer's, it begins with a blank."""

BY_LENGTH = {
    length: tuple(s for s in SENTENCES if len(s) == length and "simulated" in " ".join(s).lower())
    for length in {len(sentence) for sentence in SENTENCES}
}
"""Every length up to the longest, so that what is left of an answer is always one sentence."""

MIDDLE = tuple(sentence for sentence in SENTENCES if len(sentence) > 4)
OPENING = tuple(f" {word}" for word in ["This", "is", "a", "simulated", "answer."])


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
    tokens: list[str] = []
    while len(tokens) < wanted:
        tokens += _sentence(rng, length - len(tokens), first=not tokens)
    return tokens[:wanted], wanted < length


def _sentence(rng: random.Random, room: int, *, first: bool) -> tuple[str, ...]:
    """The next sentence; the last one fills the room."""
    if room in BY_LENGTH:
        return rng.choice(BY_LENGTH[room])
    return OPENING if first else rng.choice(MIDDLE)


DIMENSIONS = 64
"""Of the simulated embeddings."""


def embed(seed: int, text: str) -> list[float]:
    """A vector of length 1, the same for the same seed and text."""
    digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=8, key=str(seed).encode()).digest()
    rng = random.Random(digest)
    vector = [rng.gauss(0, 1) for _ in range(DIMENSIONS)]
    length = math.hypot(*vector) or 1.0
    return [round(x / length, 8) for x in vector]
