"""What a student learns from its teacher: responses, features, written text; by hand and by identities."""

import math

import pytest
import torch
import torch.nn.functional as F

from llmctl.core.compress.slim.cut import cut
from llmctl.core.data.batch import IGNORE, Batch
from llmctl.core.model.init import initialise
from llmctl.core.model.memory import EncoderInput
from llmctl.core.model.transformer import Transformer
from llmctl.core.train.distill import Response, response
from llmctl.core.train.features import Compared, Pupil, look_inside, mapped
from llmctl.core.train.objectives import hidden_of, tokens_loss
from llmctl.core.train.writing import Written, as_batch, prompts, write
from llmctl.errors import UserError
from llmctl.spec.distill import DistillConfig
from llmctl.spec.student import Student, evenly
from tests.core.variants import VARIANTS

KINDS = ["llama", "gemma2", "bert", "t5", "bart"]
SHARES = {"encoder": 1.0, "decoder": 1.0}


def model(variant, seed=0, **changes):
    return initialise(Transformer(VARIANTS[variant].resized(**changes)), seed).eval()


def batch(config, rows=2, length=10):
    """Rows of two documents and two places of padding; every third token of text is asked for by an encoder."""
    generator = torch.Generator().manual_seed(1)
    tokens, targets = (torch.randint(3, config.vocab, (rows, length), generator=generator) for _ in range(2))
    segments = torch.tensor([1] * 4 + [2] * (length - 6) + [0, 0]).expand(rows, -1)
    positions = torch.tensor([*range(4), *range(length - 6), 0, 0]).expand(rows, -1)
    asked = segments != 0
    if config.kind == "encoder":
        asked = asked & (torch.arange(length) % 3 == 0)
    targets = torch.where(asked, targets, IGNORE)
    encoder = None
    if config.kind == "encoder-decoder":
        encoder = EncoderInput(tokens.flip(1), positions.flip(1), segments.flip(1))
    scored = int(asked.sum())
    return Batch(tokens, targets, positions, segments, scored, scored, encoder=encoder)


@pytest.mark.parametrize("variant", KINDS)
def test_a_response_is_the_kl_of_the_two_models_logits_at_the_places_asked_for(variant):
    teacher, student = model(variant, 1), model(variant, 2, layers=1)
    rows = batch(student.config)
    with torch.no_grad():
        p, q = (F.log_softmax(one.head(hidden_of(one, rows)), -1)[rows.targets != IGNORE] for one in (teacher, student))
    loss = response(teacher, DistillConfig(hard=0.25))(student, rows)
    nll = F.nll_loss(q, rows.targets[rows.targets != IGNORE], reduction="sum")
    kl = (p.exp() * (p - q)).sum()
    assert loss.total.item() == pytest.approx(float(0.75 * kl + 0.25 * nll), rel=1e-4)
    with torch.no_grad():
        seen = response(teacher, DistillConfig(hard=0.25))(student, rows)
    assert seen.total.item() == pytest.approx(loss.total.item(), rel=1e-4)
    assert seen.measures["kl"].total.item() == pytest.approx(kl.item(), rel=1e-4)


def test_all_weight_on_the_text_is_plain_training():
    student, rows = model("llama"), batch(VARIANTS["llama"])
    hard = response(None, DistillConfig(soft=0, hard=1))(student, rows)
    assert hard.total.item() == pytest.approx(tokens_loss(student, rows).total.item(), rel=1e-6)


def test_padding_of_the_vocabulary_changes_nothing_that_is_learned():
    teacher, student = model("llama", 1), model("llama", 2, layers=1)
    rows = batch(student.config)
    wide = model("llama", 1, vocab=70)
    wide.load_state_dict({name: F.pad(x, (0, 0, 0, 9), value=3.0) if x.shape[0] == 61 else x
                          for name, x in teacher.state_dict().items()})  # fmt: skip
    one, other = (response(teacher)(student, rows).total for teacher in (teacher, wide))
    assert one.item() == pytest.approx(other.item(), rel=1e-5)


def test_distilberts_objective_is_that_of_its_paper():
    """Soft labels at T = 2 at every token, masked tokens, and 1 - cos of the last states, by transformers' formulas."""
    teacher, student = model("bert", 1), model("bert", 2, layers=1)
    rows, config = batch(student.config), DistillConfig(preset="distilbert")
    pupil = Pupil(student, teacher.config, config, 0)
    loss = Compared(teacher, student.config, config, {"encoder": 0.15})(pupil, rows)
    real, asked = rows.segments != 0, rows.targets != IGNORE
    with torch.no_grad():
        x, y = hidden_of(student, rows), hidden_of(teacher, rows)
        s, t = student.head(x)[real], teacher.head(y)[real]
        ce = F.kl_div(F.log_softmax(s / 2, -1), F.softmax(t / 2, -1), reduction="sum") * 2**2
        mlm = F.cross_entropy(student.head(x)[asked], rows.targets[asked], reduction="sum")
        ones = torch.ones(int(real.sum()))
        cos = F.cosine_embedding_loss(x[real], y[real], ones, reduction="sum")
    assert loss.total.item() == pytest.approx(float(0.15 * 5 * ce + 2 * mlm + 0.15 * cos) / 7, rel=1e-4)


@pytest.mark.parametrize("variant", KINDS)
@pytest.mark.parametrize("preset", ["tinybert", "minilm"])
def test_a_student_that_is_its_teacher_differs_in_nothing_inside(variant, preset):
    teacher, config = model(variant, 1), DistillConfig(preset=preset)
    pupil = Pupil(model(variant, 1), teacher.config, config, 0)
    loss = Compared(teacher, teacher.config, config, SHARES)(pupil, batch(teacher.config))
    assert abs(loss.total.item()) < 1e-4
    other = Pupil(model(variant, 2), teacher.config, config, 0)
    assert Compared(teacher, teacher.config, config, SHARES)(other, batch(teacher.config)).total.item() > 0.01


def test_tinyberts_terms_are_those_of_its_paper():
    teacher, student = model("bert", 1), model("bert", 2, layers=1)
    rows = batch(student.config, length=6)._replace(segments=torch.ones(2, 6, dtype=torch.int64))
    found = {}
    for term in ("attention", "hidden", "embedding"):
        config = DistillConfig(soft=0, **{term: 1.0})
        pupil = Pupil(student, teacher.config, config, 0)
        found[term] = Compared(teacher, student.config, config, SHARES)(pupil, rows).total.item()
    with torch.no_grad():
        ours, theirs = (look_inside(one, rows, {"encoder": [len(one.layers) - 1]})["encoder"] for one in
                        (student, teacher))  # fmt: skip
        a, b = (one.q @ one.k.transpose(-1, -2) * 6**-0.5 for one in (ours.heads[0], theirs.heads[1]))
    places = 2 * 6
    assert found["attention"] == pytest.approx(places * F.mse_loss(a, b).item(), rel=1e-4)
    assert found["hidden"] == pytest.approx(places * F.mse_loss(ours.hidden[1], theirs.hidden[2]).item(), rel=1e-4)
    assert found["embedding"] == pytest.approx(places * F.mse_loss(ours.hidden[0], theirs.hidden[0]).item(), rel=1e-4)


def test_minilms_relations_are_those_of_its_paper():
    teacher, student = model("bert", 1), model("bert", 2, layers=1)
    rows = batch(student.config, length=6)._replace(segments=torch.ones(2, 6, dtype=torch.int64))
    config = DistillConfig(preset="minilm")
    loss = Compared(teacher, student.config, config, SHARES)(Pupil(student, teacher.config, config, 0), rows)
    wanted = 0.0
    with torch.no_grad():
        ours = look_inside(student, rows, {"encoder": [0]})["encoder"].heads[0]
        theirs = look_inside(teacher, rows, {"encoder": [1]})["encoder"].heads[1]
        for name, other in (("q", "k"), ("v", "v")):
            q, p = (F.log_softmax(getattr(one, name) @ getattr(one, other).transpose(-1, -2) / math.sqrt(6), -1)
                    for one in (ours, theirs))  # fmt: skip
            wanted += (p.exp() * (p - q)).sum().item() / 4  # heads
    assert loss.total.item() == pytest.approx(wanted, rel=1e-4)


def test_a_narrow_student_with_other_heads_is_compared_through_projections_and_relations():
    teacher, student = model("llama", 1), model("llama", 2, width=12, heads=2, kv_heads=1, head_dim=6, ff=16)
    config = DistillConfig(soft=0, hidden=1, relations=1, embedding=1)
    pupil = Pupil(student, teacher.config, config, 0)
    assert {name: tuple(fit.weight.shape) for name, fit in pupil.fits.items()} == {
        "hidden_decoder": (24, 12), "embedding_decoder": (24, 12)
    }  # fmt: skip
    Compared(teacher, student.config, config, SHARES)(pupil, batch(student.config)).total.backward()
    assert all(fit.weight.grad.abs().max() > 0 for fit in pupil.fits.values())
    assert student.layers[-1].attention.v.weight.grad.abs().max() > 0
    with pytest.raises(UserError, match="head with head, but the teacher has 4 and the student 2") as refused:
        Compared(teacher, student.config, DistillConfig(attention=1), SHARES)
    assert "--heads 4" in refused.value.hint and "--relations" in refused.value.hint


@pytest.mark.parametrize("variant", ["llama", "mistral", "t5", "bart"])
def test_what_is_written_greedily_is_what_generation_writes_and_rows_do_not_depend_on_each_other(variant):
    from llmctl.core.decode.generate import generate
    from llmctl.core.decode.rules import Rules
    from llmctl.spec.sample import Sampling

    writer = model(variant, 3)
    given = [[5, 9, 7], [4, 8, 6, 11, 20], [33]]
    made = write([(writer, 1.0)], given, [6, 4, 6], 0.0, [1, 2, 3], frozenset({2}), 50)
    rules = Rules(start=(0,)) if writer.config.kind == "encoder-decoder" else None
    for prompt, limit, text in zip(given, (6, 4, 6), made, strict=True):
        sampling = Sampling(max_tokens=limit, temperature=0)
        alone = generate(writer, [prompt], sampling, [0], frozenset({2}), 50, rules=rules)
        assert text == [token.id for token in alone if token.id is not None]
    drawn = write([(writer, 1.0)], given, [6, 6, 6], 1.0, [1, 2, 3], frozenset({2}), 50)
    assert drawn[1:2] == write([(writer, 1.0)], given[1:2], [6], 1.0, [2], frozenset({2}), 50)


def test_a_mixture_is_drawn_from_both_distributions():
    one, other = model("llama", 1), model("llama", 2)
    given = [[5, 9, 7]] * 4000
    first = [
        text[0] for text in write([(one, 0.7), (other, 0.3)], given, [1] * 4000, 1.0, range(4000), frozenset(), 61)
    ]
    seen = torch.bincount(torch.tensor(first), minlength=61) / 4000
    with torch.no_grad():
        p, q = (F.softmax(m.head(m(torch.tensor([given[0]])))[0, -1], -1) for m in (one, other))
    wanted = 0.7 * p + 0.3 * q
    assert (seen - wanted).abs().max() < 0.04  # five deviations of the likeliest


def test_written_rows_ask_for_what_was_written_alone():
    rows = batch(VARIANTS["llama"])
    given = prompts(rows, 6)
    assert given == [[rows.tokens[row, 4:6].tolist()] for row in range(2)]  # of the second document
    made = as_batch([one[0] for one in given], [[7, 8, 2], [9]], None, 0, own=True)
    assert made.targets.tolist() == [[IGNORE, 7, 8, 2], [IGNORE, 9, IGNORE, IGNORE]]
    assert (made.scored, made.read, made.written) == (4, 6, True)
    both = batch(VARIANTS["t5"])
    sources = [text for row in prompts(both, 6) for text in row]
    made = as_batch(sources, [[7, 2]] * 4, 0, 0, own=False)
    assert len(sources) == 4 and made.tokens.tolist() == [[0, 7]] * 4 and made.encoder.tokens.shape == (4, 4)


def test_the_policy_gradient_is_that_of_the_kl_of_whole_texts():
    """Over all texts of two tokens: the weighted single steps and rewards add up to the gradient of the exact KL."""
    vocab = 5
    shape = {"vocab": vocab, "width": 8, "heads": 2, "kv_heads": 2, "layers": 1, "ff": 8, "context": 8}
    teacher, student = (model("llama", seed, **shape).double() for seed in (1, 2))
    config = DistillConfig(preset="minillm", mix=0.0)
    texts = [[a, b] for a in range(vocab) for b in range(vocab)]
    rows = as_batch([[3]] * len(texts), texts, None, 0, own=True)
    p, q = (F.log_softmax(m.head(hidden_of(m, rows)), -1).gather(2, rows.targets[..., None])[..., 0] for m in
            (teacher, student))  # fmt: skip
    exact = ((q.sum(1).exp()) * (q.sum(1) - p.sum(1))).sum()
    wanted = torch.autograd.grad(exact, student.embed.tokens.weight, retain_graph=True)[0]
    got = torch.zeros_like(wanted)
    chance = q.sum(1).exp().detach()
    for row in range(len(texts)):
        one = as_batch([[3]], [texts[row]], None, 0, own=True)
        loss = Response(teacher, config)(student, one).total
        got += chance[row] * torch.autograd.grad(loss, student.embed.tokens.weight)[0]
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-5)


def test_what_the_teacher_wrote_is_kept_by_whole_lines(tmp_path):
    kept = Written(tmp_path / "texts")
    kept.add([[[1, 2]], [[3]]])
    with open(tmp_path / "texts", "ab") as file:
        file.write(b"[[4,")
    again = Written(tmp_path / "texts")
    assert again.rows == [[[1, 2]], [[3]]]
    again.add([[[5]]])
    assert Written(tmp_path / "texts").rows == [[[1, 2]], [[3]], [[5]]]


def test_layers_are_taken_evenly_and_what_is_said_of_them_by_number_goes_along():
    assert evenly(12, 6) == (0, 2, 4, 7, 9, 11) and evenly(4, 2) == (0, 3) and evenly(4, 1) == (0,)
    assert mapped(4, 12) == [(0, 2), (1, 5), (2, 8), (3, 11)]
    teacher = model("gemma2", 1, layers=4, window_layers=(0, 2))
    shape, layers = Student(take=("0,3",)).made(teacher.config)
    assert layers == {"decoder": (0, 3)} and shape.window_layers == (0,) and shape.layers == 2
    student = cut(teacher, shape, {}, layers)
    torch.testing.assert_close(student.layers[1].mlp.up.weight, teacher.layers[3].mlp.up.weight, rtol=0, atol=0)
    with pytest.raises(UserError, match="no layer 4"):
        Student(take=("4",)).made(teacher.config)


def test_a_student_of_another_width_begins_fresh_with_shapes_in_proportion():
    shape, layers = Student(width=12).made(VARIANTS["llama"])
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.ff, layers) == (2, 1, 6, 24, {})
    with pytest.raises(UserError, match="another width"):
        Student(width=12, start="teacher").made(VARIANTS["llama"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"loss": "jsd", "beta": 1.0}, "--beta"),
        ({"beta": 0.5}, "--loss jsd"),
        ({"tail": "rest"}, "--top-k"),
        ({"mix": 0.2}, "--text student"),
        ({"cache": "x", "hidden": 1.0}, "--cache"),
        ({"soft": 0.0}, "every weight is 0"),
        ({"tail": "renormalise", "top_k": 4, "loss": "reverse-kl"}, "renormalise"),
        ({"policy_gradient": True, "text": "student"}, "--policy-gradient"),
        ({"text": "student", "hard": 0.5}, "--hard"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(given, told):
    with pytest.raises(UserError, match=told):
        DistillConfig(**given)


def test_presets_are_those_of_their_papers_and_give_way_to_what_is_given():
    bert = DistillConfig(preset="distilbert")
    assert (bert.temperature, bert.hidden_loss) == (2.0, "cosine") and bert.soft / bert.hard == pytest.approx(2.5)
    assert DistillConfig(preset="gkd", on_policy=1.0).on_policy == 1.0
    assert DistillConfig(hard=0.25).soft == 0.75 and DistillConfig(cache="x").top_k == 64
