"""Numbers that the readouts beside k-NN are tested against: scikit-learn's logistic regression, open_clip's zero-shot.

    python readouts.py > readouts.json     (scikit-learn, open_clip, transformers, torch; `language.py` needs gguf)

The linear probe's features are those of the golden case of k-NN (`evaluate/golden.rs` makes them again); the text tower
is the tiny one of `language.py`, through open_clip's own `build_zero_shot_classifier`.
"""

import json

import numpy
import torch

MASK = 2**64 - 1


class SplitMix64:
    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def uniform(self):
        return (self.next() >> 11) / 2**53


def golden_case():
    """300 and 40 unit rows of 16 f32 around five centres, and their labels."""
    random = SplitMix64(21)
    bank_labels = [random.next() % 5 for _ in range(300)]
    query_labels = [random.next() % 5 for _ in range(40)]
    row = lambda: numpy.array([random.uniform() - 0.5 for _ in range(16)])
    centres = [row() for _ in range(5)]

    def features(labels):
        values = numpy.array([centres[label] + 2.6 * row() for label in labels]).astype(numpy.float32)
        values = values.astype(numpy.float64)
        return (values / numpy.linalg.norm(values, axis=1, keepdims=True)).astype(numpy.float32).astype(numpy.float64)

    bank = features(bank_labels)
    return bank, bank_labels, features(query_labels), query_labels


def probe():
    from sklearn.linear_model import LogisticRegression

    bank, bank_labels, queries, query_labels = golden_case()
    numbers = {}
    for c in [0.1, 1.0, 100.0]:
        model = LogisticRegression(C=c, solver="lbfgs", tol=1e-12, max_iter=100_000).fit(bank, bank_labels)
        predicted = model.predict(queries)
        numbers[f"c{c:g}".replace(".", "_")] = {
            "decision": model.decision_function(queries[:3]).flatten().tolist(),
            "coefficients": model.coef_[:, :2].flatten().tolist(),
            "intercepts": model.intercept_.tolist(),
            "predictions": "".join(str(label) for label in predicted),
            "correct": int((predicted == query_labels).sum()),
        }
    return numbers


def zero_shot():
    import open_clip
    import transformers
    from language import clip_name, fill, values

    config = transformers.CLIPTextConfig(
        vocab_size=18, hidden_size=8, intermediate_size=16, projection_dim=6, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, hidden_act="gelu", bos_token_id=16, eos_token_id=17, pad_token_id=0,
        attn_implementation="eager")
    model = fill(transformers.CLIPTextModelWithProjection(config), 7, clip_name)
    letters = "acdgot&."

    def tokenize(texts):
        rows = []
        for text in texts:
            words = [[letters.index(c) for c in word] for word in text.split()]
            body = [i + 8 * (at == len(word) - 1) for word in words for at, i in enumerate(word)]
            assert len(body) <= 10
            rows.append([16, *body, 17] + [0] * (10 - len(body)))
        return torch.tensor(rows)

    class Tower(torch.nn.Module):
        def encode_text(self, texts, normalize):
            embeddings = model(input_ids=texts).text_embeds
            return torch.nn.functional.normalize(embeddings, dim=-1) if normalize else embeddings

    # As Causeway hands them over: underscores are spaces.
    names = [name.replace("_", " ") for name in ["cat", "dog", "cat_a", "coat"]]
    templates = [lambda name: f"a {name}", lambda name: f"{name} & dog"]
    with torch.no_grad():
        classes = open_clip.build_zero_shot_classifier(Tower(), tokenize, names, templates, 10, "cpu")
        images = values(11, "images", (5, 6))
        logits = torch.nn.functional.normalize(images, dim=-1) @ classes
    return {"classes": classes.T.tolist(), "logits": logits.tolist(), "predictions": logits.argmax(1).tolist()}


if __name__ == "__main__":
    import open_clip
    import sklearn
    import transformers

    made_with = {"scikit-learn": sklearn, "open_clip": open_clip, "transformers": transformers, "torch": torch}
    made_with = ", ".join(f"{name} {module.__version__.split('+')[0]}" for name, module in made_with.items())
    print(json.dumps({"made_with": made_with, "probe": probe(), "zero_shot": zero_shot()}, indent=1))
