"""A backend that gives scripted texts and likelihoods computed from ids, and counts what it is asked."""

from types import SimpleNamespace

from mindspore_impl.evaluation.backend import Backend
from mindspore_impl.evaluation.loglikelihood import Likelihood
from mindspore_impl.text.tokenizer import train_tokenizer

TEXT = "Question Answer A B C D one two three four five 0 1 2 3 4 5 6 7 8 9 . , : # ? \n The Reds Smith and Jones-Lee"


def make_tokenizer(folder):
    """A small vocabulary with byte fallback, so that every text can be spelled."""
    texts = [f"{TEXT} {number} {number * 7}" for number in range(60)] + ["所以三加一等于四是否的答案", TEXT.lower()] * 9
    corpus = [*texts, *(f"{a}{b}{c}{d}" for a in "abcdef" for b in "ghijkl" for c in "mnopqr" for d in "stuvwx")]
    return train_tokenizer(corpus, folder / "tokenizer.model", 540, 1.0)


class Counting:
    """likelihoods: minus the sum of the ids, a little more for the last; generate: the next scripted text."""

    def __init__(self, tokenizer, texts=(), limit=4096):
        self.tokenizer, self.texts, self.queries, self.prompts = tokenizer, list(texts), [], []
        self.backend = Backend(tokenizer, self.likelihoods, self.generate, limit, "weights")

    def likelihoods(self, queries, progress=None):
        self.queries += queries
        return [[self.likelihood(query, text) for text in query.continuations] for query in queries]

    @staticmethod
    def likelihood(query, text):
        total = -float(sum(text)) / 100 - len(query.context) / 1000
        return Likelihood(total, text[0] % 2 == 0)

    def generate(self, prompts, sampling, seeds, progress=None, enough=None):
        made = []
        for prompt in prompts:
            self.prompts.append(prompt)
            text = self.texts[(len(self.prompts) - 1) % len(self.texts)]
            special = self.tokenizer.special
            ids = [special["[unused16]"], special["[unused17]"]] if "[unused16]" not in text else []
            ids = (ids if sampling.temperature == 0 and enough is None else []) + self.tokenizer.encode(text)
            ids += [special["[unused10]"]]
            if enough is not None:
                ids = next((ids[:n] for n in range(1, len(ids)) if enough(ids[:n])), ids)
            ids = ids[: sampling.max_new_tokens]
            made.append((ids, ids[-1] == special["[unused10]"]))
        return made


def request(*args):
    """What the harness hands over, as far as it is read."""
    return SimpleNamespace(args=args)
