"""Metrics against sacrebleu and rouge-score, baselines against scikit-learn, on real texts."""

import numpy as np
import pytest

from llama_jax.evals.baselines import said
from llama_jax.evals.metrics import figure

sacrebleu = pytest.importorskip("sacrebleu")
sklearn_text = pytest.importorskip("sklearn.feature_extraction.text")
sklearn_bayes = pytest.importorskip("sklearn.naive_bayes")

from llama_jax.data import Tfds  # noqa: E402
from llama_jax.data.builders import prepared  # noqa: E402

ROUNDING = 1e-9  # of sums of doubles


@pytest.fixture(scope="module")
def rows(data_dir):
    """All rows of a split."""

    def of(name, split):
        prepared(name, data_dir)
        return [*Tfds(name, split, data_dir=data_dir).open()]

    return of


@pytest.fixture(scope="module")
def translated(rows):
    """Texts said and right ones, by language: the nearest neighbours of real interface texts."""
    train, test = rows("interface_texts", "train"), rows("interface_texts", "test")
    found = {}
    for language in ("de", "zh"):
        mine = [row for row in test if row["language"] == language][:120]
        known = [row for row in train if row["language"] == language]
        texts = said("nearest", known, [row["source"] for row in mine])
        found[language] = texts, [row["target"] for row in mine]
    return found


@pytest.mark.parametrize("language", ["de", "zh"])
def test_chrf_is_that_of_sacrebleu(translated, language):
    texts, right = translated[language]
    value, low, high = figure("chrf", texts, right)
    expected = sacrebleu.CHRF().corpus_score(texts, [right]).score / 100
    assert value == pytest.approx(expected, abs=ROUNDING)
    assert low < value < high


@pytest.mark.parametrize("language", ["de", "zh"])
def test_bleu_is_that_of_sacrebleu_with_the_tokenizer_of_the_language(translated, language):
    texts, right = translated[language]
    value, low, high = figure("bleu", texts, right)
    metric = sacrebleu.BLEU(tokenize={"de": "13a", "zh": "zh"}[language])
    assert value == pytest.approx(metric.corpus_score(texts, [right]).score / 100, abs=ROUNDING)
    assert low < value < high


def test_intervals_are_those_of_sacrebleus_own_bootstrap(translated):
    texts, right = translated["de"]
    _, low, high = figure("chrf", texts, right)
    score = sacrebleu.CHRF().corpus_score(texts, [right], n_bootstrap=1000)
    half = float(
        score.format(is_json=True, width=6, signature="a:b")
        .split('"confidence_var": ')[1]
        .split(",")[0]
    )
    # Both are quantiles of 1,000 draws, by other numbers at random: 7 % of the width apart at most.
    assert (high - low) / 2 == pytest.approx(half / 100, rel=0.15)


def test_rouge_is_the_mean_of_rouge_scores_f(rows):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rougeL"])
    test = rows("bbc_news", "test")
    lead = said("lead", test, [row["source"] for row in test])
    right = [row["target"] for row in test]
    for name, kind in (("rouge_1", "rouge1"), ("rouge_l", "rougeL")):
        each = [scorer.score(b, a)[kind].fmeasure for a, b in zip(lead, right, strict=True)]
        assert figure(name, lead, right)[0] == pytest.approx(np.mean(each))
    # The first eight words of an article as its headline: 0.199 here, 0.185 over all splits.
    assert figure("rouge_l", lead, right)[0] == pytest.approx(0.199, abs=0.01)


def test_naive_bayes_says_what_scikit_learns_says(rows):
    train, test = rows("reviews_zh", "train"), rows("reviews_zh", "test")
    sources = [row["source"] for row in test]
    mine = said("naive_bayes", train, sources)
    counter = sklearn_text.CountVectorizer(analyzer="char", ngram_range=(1, 2), lowercase=False)
    model = sklearn_bayes.MultinomialNB(alpha=1.0)
    model.fit(counter.fit_transform([r["source"] for r in train]), [r["target"] for r in train])
    assert mine == model.predict(counter.transform(sources)).tolist()
    right = [row["target"] for row in test]
    assert figure("accuracy", mine, right)[0] == pytest.approx(0.768, abs=0.005)
    usual = said("most_frequent", train, sources)
    assert figure("accuracy", usual, right)[0] == pytest.approx(0.524, abs=0.005)


def test_neighbours_are_as_near_as_scikit_learns(rows):
    train = [row for row in rows("interface_texts", "train") if row["language"] == "fr"]
    test = [row for row in rows("interface_texts", "test") if row["language"] == "fr"]
    sources = [row["source"] for row in train]
    numbered = [{"source": source, "target": str(i)} for i, source in enumerate(sources)]
    mine = [int(i) for i in said("nearest", numbered, [row["source"] for row in test])]
    tfidf = sklearn_text.TfidfVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False)
    known = tfidf.fit_transform(sources)
    alike = (tfidf.transform([row["source"] for row in test]) @ known.T).toarray()
    chosen = alike[np.arange(len(test)), mine]
    np.testing.assert_allclose(chosen, alike.max(axis=1), atol=1e-6)  # float32; several may be
