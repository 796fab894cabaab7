"""Formulas in plain Unicode become MathML; whatever they say, nothing of it is lost."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.site.load import module

mathml = module("equations").mathml


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a / b", "<mfrac><mrow><mi>a</mi></mrow><mrow><mi>b</mi></mrow></mfrac>"),
        ("(a + b) / c", "<mfrac><mrow><mi>a</mi><mo>+</mo><mi>b</mi></mrow><mrow><mi>c</mi></mrow></mfrac>"),
        ("x_i", "<msub><mi>x</mi><mi>i</mi></msub>"),
        ("√(x)", "<msqrt><mrow><mi>x</mi></mrow></msqrt>"),
        ("1e-4", "<msup><mn>10</mn><mn>−4</mn></msup>"),
        ("log π", '<mi mathvariant="normal">log</mi><mspace width="0.17em"/><mi>π</mi>'),
        ("x where y", "<mtext>where</mtext>"),
        ("a < b", "<mo>&lt;</mo>"),
    ],
)
def test_forms_by_hand(text, part):
    assert part in mathml(text)


def test_a_sum_has_its_index_below():
    assert re.search(r"<munder>.*∑.*<mi>i</mi></munder>", mathml("Σ_i x_i"))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abxyπρε αΣ_^{}()[]|/√²=+−·,.<>&'\"0123456789e", max_size=40))
def test_any_text_is_well_formed_and_loses_no_letter(text):
    tree = ElementTree.fromstring(mathml(text))
    shown = "".join(tree.itertext())
    for letter in "abxyπρεα":
        assert shown.count(letter) == text.count(letter)
