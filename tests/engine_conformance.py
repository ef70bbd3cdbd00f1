"""What every engine must do. `make(**options)` opens one on the same checkpoint."""

from tinyr1.model.chat import stop_ids
from tinyr1.model.qwen2 import Qwen2
from tinyr1.model.tokenizer import Tokenizer
from tinyr1.sampling.engine import TorchEngine
from tinyr1.sampling.sampler import SamplingSettings, request_seed

MAX_MODEL_LEN = 200


def settings_of(folder, **changes):
    stops = stop_ids(Tokenizer(folder), "deepseek_r1")
    values = {"max_tokens": 40, "seed": 5, "stop_ids": stops} | changes
    return SamplingSettings(**values)


def collect(sampler, prompts):
    samples = [s for part in sampler.generate(prompts) for s in part]
    assert len({s.key for s in samples}) == len(samples)
    return {s.key: s for s in samples}


class Conformance:
    """Subclasses give the fixture `make(slots=..., **settings)`; `folder` is the checkpoint."""

    def ours(self, folder, prompts, **settings):
        model, tokenizer = Qwen2.from_pretrained(folder), Tokenizer(folder)
        engine = TorchEngine(model, tokenizer, settings_of(folder, **settings), 8, MAX_MODEL_LEN)
        return collect(engine, prompts)

    def test_every_prompt_once_with_its_figures(self, make, prompts):
        samples = collect(make(), prompts)
        assert samples.keys() == {p.key for p in prompts}
        for prompt in prompts:
            sample = samples[prompt.key]
            assert sample.seed == request_seed(5, prompt)
            assert 1 <= sample.token_count <= 40
            if sample.token_count < 40:
                assert sample.finish_reason == "stop"
            assert "▁of▁" not in sample.text
        assert len({s.text for s in samples.values()}) > len(prompts) / 2  # trials differ

    def test_greedy_is_the_same_text_everywhere(self, make, folder, prompts):
        theirs = collect(make(temperature=0.0), prompts[::3])
        assert theirs == self.ours(folder, prompts[::3], temperature=0.0)

    def test_seeded_samples_do_not_depend_on_company(self, make, prompts):
        reference = collect(make(slots=8), prompts)
        assert collect(make(slots=2), prompts[::-1]) == reference
        assert collect(make(slots=1), prompts[4:5])[prompts[4].key] == reference[prompts[4].key]

    def test_limits(self, make, prompts):
        samples = collect(make(max_tokens=500), prompts)
        for prompt in prompts:
            room = MAX_MODEL_LEN - len(prompt.tokens)
            sample = samples[prompt.key]
            assert sample.token_count <= room
            if sample.finish_reason == "length":
                assert sample.token_count == room

    def test_stop_strings_end_and_are_cut_off(self, make, folder, prompts):
        whole = self.ours(folder, prompts[:3], temperature=0.0)
        for prompt in prompts[:1]:
            text = whole[prompt.key].text
            middle = len(text) // 2
            stop = text[middle : middle + 5]  # wherever the borders of tokens are
            sampler = make(temperature=0.0, stop=(stop, "never \x00 there"))
            sample = collect(sampler, [prompt])[prompt.key]
            assert sample.text == text[: text.find(stop)]
            assert sample.finish_reason == "stop"
            assert sample.token_count <= whole[prompt.key].token_count

    def test_prompts_are_pulled_as_there_is_room(self, make, prompts):
        pulled = []
        samples, most_ahead = 0, 0
        for part in make(slots=2).generate(pulled.append(p) or p for p in prompts):
            samples += len(part)
            most_ahead = max(most_ahead, len(pulled) - samples)
        assert samples == len(prompts)
        assert most_ahead <= 3

    def test_streamed_text_is_the_sample(self, make, folder, prompts):
        for prompt in prompts[:2]:
            sampler = make(temperature=0.0)
            pieces = list(sampler.stream(prompt))
            assert "".join(pieces) == self.ours(folder, [prompt], temperature=0.0)[prompt.key].text
            assert sum(map(bool, pieces)) > 1

    def test_status_and_nothing_to_do(self, make):
        sampler = make()
        assert list(sampler.generate([])) == []
        assert sampler.status.running == 0
