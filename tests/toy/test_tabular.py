"""Tables are what they say, and enumeration lists a whole law."""

import itertools

import numpy as np
import pytest
import torch

from toy.tabular import Memo, TabularLM, enumerate_law


def conditional(model, text):
    return model(torch.tensor([text]))[0, -1].double().softmax(-1).numpy()


def test_iid_and_markov_tables():
    probs = [0.2, 0.5, 0.3]
    iid = TabularLM.iid(probs, dtype=torch.float64)
    chain = TabularLM.markov([[0.1, 0.9, 0.0], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0]], dtype=torch.float64)
    for text in ([0], [1, 2], [2, 1, 0]):
        np.testing.assert_allclose(conditional(iid, text), probs, atol=1e-15)
    np.testing.assert_allclose(conditional(chain, [2, 0]), [0.1, 0.9, 0.0], atol=1e-15)
    np.testing.assert_allclose(conditional(chain, [0, 2, 2]), [0, 0, 1], atol=1e-15)


def test_a_tree_is_the_law_that_was_written():
    model = TabularLM.tree({(0,): [0.25, 0.75], (0, 1): [1.0, 0.0], (0, 1, 0): [0.5, 0.5]}, vocab_size=2)
    np.testing.assert_allclose(conditional(model, [0]), [0.25, 0.75], atol=1e-7)
    assert conditional(model, [0, 1]).tolist() == [1.0, 0.0]
    assert conditional(model, [0, 0]).tolist() == conditional(model, [1, 1, 1]).tolist() == [0.5, 0.5]  # not listed


def test_random_tables_differ_at_every_text_and_end_at_their_depth():
    model = TabularLM.random(3, 3, seed=1)
    texts = [text for n in (1, 2, 3) for text in itertools.product(range(3), repeat=n)]
    laws = {tuple(conditional(model, list(text)).round(6)) for text in texts}
    assert len(laws) == len(texts) == 39
    assert model.max_length == 4


def test_the_cache_gives_what_whole_texts_give():
    model, generator = TabularLM.random(3, 6, seed=2), torch.Generator().manual_seed(0)
    texts = torch.randint(0, 3, (5, 6), generator=generator)
    cache, positions = model.new_cache(5, 6), torch.arange(6).expand(5, 6)
    model(texts[:, :2], positions[:, :2], cache, logits=False)
    stepwise = [model(texts[:, t : t + 1], positions[:, t : t + 1], cache) for t in range(2, 6)]
    assert torch.equal(torch.cat(stepwise, 1), model(texts)[:, 2:])
    order = torch.tensor([3, 3, 0, 1, 4])  # fork, permute, rewind to 4 and go on with another token
    cache.copy_rows(order, torch.arange(5))
    texts = torch.cat((texts[order, :4], torch.zeros((5, 1), dtype=torch.int64)), 1)
    assert torch.equal(model(texts[:, 4:], positions[:, 4:5], cache)[:, 0], model(texts)[:, -1])


def test_rows_that_are_no_laws_are_refused():
    for probs in ([0.5, 0.6], [-0.1, 1.1]):
        with pytest.raises(ValueError, match="non-negative and sum to 1"):
            TabularLM.iid(probs)
    with pytest.raises(ValueError, match=r"transitions of that shape to states 0..0"):
        TabularLM(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.int64))


def assert_whole_law(model, prompt, horizon, stops, enumerate_law=enumerate_law):
    """The records are all of them, disjoint, and their log-probabilities add up along the model's own conditionals."""
    records, logp, conditionals = enumerate_law(model, prompt, horizon, stops)
    assert records == sorted(set(records))
    assert np.exp(logp).sum() == pytest.approx(1, abs=1e-12)
    for record, total in zip(records, logp):
        assert (record[-1] in stops or len(record) == horizon) and not set(record[:-1]) & set(stops)
        along = [np.log(conditional(model, [*prompt, *record[:t]])[token]) for t, token in enumerate(record)]
        assert total == pytest.approx(sum(along), abs=1e-12)
    assert set(conditionals) == {record[:t] for record in records for t in range(len(record))}
    return records


def test_enumeration_lists_the_whole_law():
    model = TabularLM.random(3, 6, seed=3, dtype=torch.float64)
    assert len(assert_whole_law(model, [1, 2], 4, [0])) == 1 + 2 + 4 + 8 * 3  # stop at once, after 1, 2 or 3
    assert len(assert_whole_law(model, [1], 3, [])) == 27
    assert len(assert_whole_law(model, [1], 3, [0, 1, 2])) == 3


def test_enumeration_leaves_out_what_cannot_happen():
    model = TabularLM.tree({(0,): [0.0, 1.0], (0, 1): [0.5, 0.5]}, vocab_size=2)
    assert assert_whole_law(model, [0], 2, [0]) == [(1, 0), (1, 1)]


def test_a_law_with_a_record_missing_is_caught():
    def forgets_one(*arguments):
        records, logp, conditionals = enumerate_law(*arguments)
        return records[1:], logp[1:], conditionals

    with pytest.raises(AssertionError):
        assert_whole_law(TabularLM.random(3, 6, seed=3, dtype=torch.float64), [1, 2], 4, [0], forgets_one)


def test_a_memo_asks_its_model_once_for_a_text_and_answers_the_same():
    model, asked = TabularLM.random(3, 4, seed=1), []
    memo = Memo(model)
    model.register_forward_hook(lambda module, inputs, output: asked.append(inputs[0].tolist()))
    for text in ([[1, 2]], [[1]], [[1, 2]], [[1]]):
        tokens = torch.tensor(text)
        assert torch.equal(memo(tokens), model.logits[table_states(model, text[0])][None])
    assert asked == [[[1, 2]], [[1]]]
    assert torch.equal(
        memo(torch.tensor([[1, 2], [2, 0]])), model(torch.tensor([[1, 2], [2, 0]]))
    )  # a batch: no memory
    assert (memo.vocab_size, memo.max_length, memo.device) == (3, 5, model.device)
    records = [enumerate_law(each, [1], 3, [0])[:2] for each in (model, memo)]
    assert records[0][0] == records[1][0] and np.array_equal(records[0][1], records[1][1])


def table_states(model, text):
    states = [0]
    for token in text:
        states.append(int(model.transition[states[-1], token]))
    return states[1:]
