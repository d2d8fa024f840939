"""The page of all fields of a config."""

from docs.generate import config_fields
from runtime import schema


def test_the_page_is_the_schema():
    """Catches a page that was not made anew after a field changed, and a field that is missing.

    Also lines that are wider than a page of the repository may be.
    """
    page = config_fields.page()
    assert config_fields.PAGE.read_text() == page, 'run: python -m docs.generate.config_fields'
    assert all(f'- **`{name}`** = ' in page for name in schema.entries())
    assert '- **`tasks.TASK.train`** = ' in page and '- **`sweep.lrs`** = ' in page
    assert max(map(len, page.splitlines())) <= 100
