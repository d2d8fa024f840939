"""The page of `apps.explain`: its numbers, text that would break out of it, and a real browser."""

import base64
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from apps import explain
from runtime import config_tree, models
from runtime.errors import RunError
from runtime.run_dir import Run

PROMPT = 'Qual é a capital do Brasil?'
HOSTILE = (
    '</script><img src=x onerror=alert(1)><b>&amp; <!-- \u202egro.x \u2067\u200f\x1b[2J '
    '\' " ` ${alert(1)} {facts} \u2028 é 北 שלום'
)
BROWSER = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), ''
)


@pytest.fixture(scope='module')
def family(tiny_run, tmp_path_factory):
    """A run that is told to be post-trained from `tiny_run`; its weights are the same."""
    child = shutil.copytree(tiny_run, tmp_path_factory.mktemp('explain') / 'child')
    run = Run.parse(str(child))
    config = run.config()
    config.data.atlas.part = 'answers'
    lineage = run.lineage() | {
        'config_hash': config_tree.config_hash(config),
        'parent': {'run': str(tiny_run), 'step': 2},
    }
    (child / 'config.json').write_text(json.dumps(config.to_dict()))
    (child / 'lineage.json').write_text(json.dumps(lineage))
    return child


@pytest.fixture(scope='module')
def facts(family):
    return explain.collect_facts(Run.parse(str(family)), PROMPT)


@pytest.fixture(scope='module')
def hostile(family):
    """Facts of a prompt that would be markup, and would turn the direction of text."""
    return explain.collect_facts(Run.parse(str(family)), '</script> <img> \u202e北')


@pytest.mark.parametrize(
    'in_template, template, begin, text',
    [
        (True, None, (1,), 'input_template'),
        (True, object(), (1,), 'input_own'),
        (False, object(), (1,), 'input_plain'),
        (False, None, (), 'input_bare'),
    ],
)
def test_how_a_prompt_is_given_is_told(in_template, template, begin, text):
    """Catches a page that tells of marks which the model's tokenizer does not have, and a text that
    is in neither language."""
    tokenizer = SimpleNamespace(template=template, begin=begin)
    walk = SimpleNamespace(in_template=in_template, tokenizer=tokenizer)
    assert explain._find_input(walk) == text
    words = json.loads(pathlib.Path('apps/explain.json').read_text('utf-8'))
    assert text in words['en'] and text in words['pt']


def read_facts(page):
    """What the browser parses."""
    [text] = re.findall('<script type="application/json" id="facts">(.*?)</script>', page, re.S)
    return json.loads(text)


def test_the_page_has_the_numbers_of_the_model(family, facts):
    """Catches a page whose logits are not those of `model.apply` for the question in its template,
    or whose parent is asked in it, too."""
    found = read_facts(explain.render(facts, 'pt'))
    model, params, tokenizer, _ = models.load(Run.parse(str(family)))
    tokens = [piece['id'] for piece in found['pieces']]
    encoded = tokenizer.encode(' ' + PROMPT)
    assert tokens == [tokenizer.bos, tokenizer.user, *encoded, tokenizer.assistant]

    def last(tokens):
        places = jnp.arange(len(tokens))[None]
        run = jax.jit(lambda p, t: model.apply({'params': p}, t, places, places * 0 + 1)[0])
        return np.asarray(run(params, jnp.asarray([tokens]))[0, -1])

    np.testing.assert_allclose(found['logits'], -np.sort(-last(tokens)), rtol=0, atol=2e-4)
    family_told = found['family']
    assert family_told['after']['template'] and not family_told['before']['template']
    assert family_told['before']['run'].endswith('@2')
    shares = np.asarray(jax.nn.softmax(last([tokenizer.bos, *tokenizer.encode(PROMPT)])))
    told = [one['share'] for one in family_told['before']['next']]
    np.testing.assert_allclose(told, -np.sort(-shares)[: len(told)], rtol=0, atol=1e-3)


def test_text_cannot_break_out(facts):
    """Catches markup, controls, or marks that turn the direction of text, that leave the block of
    facts; a template's own braces in a prompt; halves of pairs; and a second script."""
    page = explain.render({**facts, 'prompt': HOSTILE + '\ud800'}, 'en')
    assert read_facts(page)['prompt'] == HOSTILE + '\ud800'
    page.encode()
    assert page.count('<script') == 2 and page.count('</script>') == 2 and '<img' not in page
    assert not re.search(
        '[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]', page
    )
    policy = re.search('Content-Security-Policy" content="(.*?)"', page)[1]
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert not re.search(r'(?:src|href)="?(?:https?:|//)|url\(|@import|innerHTML', page)


def test_no_parent_and_one_that_is_gone(tiny_run, family, tmp_path):
    """Catches a page that fails, or is silent, where the run before is not there."""
    alone = explain.collect_facts(Run.parse(str(tiny_run)), PROMPT)
    assert alone['family'].keys() == {'after'} and not alone['template']
    moved = shutil.copytree(family, tmp_path / 'moved')
    lineage = json.loads((moved / 'lineage.json').read_text())
    lineage['parent']['run'] = str(tmp_path / 'gone')
    (moved / 'lineage.json').write_text(json.dumps(lineage))
    told = explain.collect_facts(Run.parse(str(moved)), PROMPT)['family']
    assert 'no such run' in told['missing'] or 'gone' in told['missing']


def test_pairs_have_no_next_word(tiny_run, tmp_path):
    """Catches a run on pairs of texts that is explained as if it wrote."""
    embedder = shutil.copytree(tiny_run, tmp_path / 'embedder')
    run = Run.parse(str(embedder))
    config = run.config()
    config.train.objective = 'contrastive'
    lineage = run.lineage() | {'config_hash': config_tree.config_hash(config)}
    (embedder / 'config.json').write_text(json.dumps(config.to_dict()))
    (embedder / 'lineage.json').write_text(json.dumps(lineage))
    with pytest.raises(RunError, match='trained on pairs .* has no next word'):
        explain.collect_facts(Run.parse(str(embedder)), PROMPT)


def test_a_free_name(monkeypatch, tmp_path):
    """Catches a page that is written over another one."""
    monkeypatch.chdir(tmp_path)
    assert explain._choose_file('') == pathlib.Path('explain.html')
    pathlib.Path('explain.html').touch()
    assert explain._choose_file('') == pathlib.Path('explain-2.html')


def test_a_wheel_has_the_template(tmp_path):
    """Catches a template or texts that an installed package lacks."""
    pytest.importorskip('setuptools', reason='needs setuptools, which Python 3.12 leaves out')
    subprocess.run(
        [sys.executable, 'setup.py', '-q', 'build', f'--build-base={tmp_path}'],
        check=True,
        capture_output=True,
    )
    built = {path.name for path in (tmp_path / 'lib' / 'apps').iterdir()}
    assert {'explain.py', 'explain.html', 'explain.json'} <= built


def browse(page, folder, width):
    """Opens a page in a browser; returns what its console said, and the document that came out.

    It takes a picture, `folder`/WIDTH.png.
    """
    path = folder / 'page.html'
    path.write_text(page, 'utf-8')

    def run(*what):
        return subprocess.run(
            [
                BROWSER,
                *('--headless', '--no-sandbox', '--disable-gpu', '--hide-scrollbars'),
                *('--enable-logging=stderr', '--v=0', '--virtual-time-budget=3000'),
                f'--window-size={width},3000',
                f'--user-data-dir={folder}/profile',
                *what,
                path.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, 'HOME': str(folder)},
        )

    run(f'--screenshot={folder}/{width}.png')
    dumped = run('--dump-dom')
    console = [line for line in dumped.stderr.splitlines() if 'CONSOLE' in line]
    return console, dumped.stdout


# Uses every control of the page, and says what came of it.
USE = """
{
  const errors = [];
  window.onerror = message => errors.push(message);
  for (const button of document.querySelectorAll('button')) button.click();
  for (const list of document.querySelectorAll('select'))
    for (const option of list.options) {
      list.value = option.value;
      list.dispatchEvent(new Event('change'));
    }
  const slider = document.querySelector('input[type=range]');
  slider.value = .5;
  slider.dispatchEvent(new Event('input'));
  document.body.dataset.errors = errors.join();
  document.body.dataset.hottest = document.querySelector('#step6 .bars > span').textContent;
  document.body.dataset.pressed = document.querySelectorAll('[aria-pressed=true]').length;
}
"""


@pytest.mark.skipif(not BROWSER, reason='no Chromium here to open the page in')
@pytest.mark.parametrize('lang, width', [('en', 1200), ('pt', 390)])
def test_in_a_browser(hostile, tmp_path, lang, width):
    """Catches a page that a browser does not draw to its end or complains of, text of the prompt
    that becomes markup, a page wider than a phone, a control that fails, and a temperature that
    does not divide the logits."""
    page = explain.render(hostile, lang)
    digest = base64.b64encode(hashlib.sha256(USE.encode()).digest()).decode()
    page = page.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    page = page.replace('</body>', f'<script>{USE}</script></body>')
    console, document = browse(page, tmp_path, width)
    assert console == []
    assert 'data-ready="yes" data-errors=""' in document and f'<html lang="{lang}">' in document
    assert '<img' not in document and document.count('<script') == 3
    for n in range(1, 8):
        assert f'id="step{n}"' in document
    assert '\u202e' not in document and '&lt;/script' in document
    assert (tmp_path / f'{width}.png').stat().st_size > 20_000
    # The page says itself whether anything of it is wider than the window.
    assert 'data-wide="no"' in document

    raised = np.exp((np.asarray(hostile['logits']) - hostile['logits'][0]) / 0.5)
    shown = re.search('data-hottest="(.*?) ?%"', document)[1].replace(',', '.')
    assert float(shown) == pytest.approx(100 / raised.sum(), abs=0.51)
    swaps = bool(hostile['swaps']['swapped'])
    assert f'data-pressed="{3 + swaps}"' in document  # embedding, swap, head and piece
