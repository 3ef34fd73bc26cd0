"""The page on which a web server lists a directory: its entries lie in the directory, and nowhere else."""

from yarl import URL

from crmuons.storage.http.index_pages import entries


def test_links_out_of_a_directory_are_no_entries():
    page = """<a href="?C=N;O=D">Name</a><A HREF='/data/'>self</A><a href="../">up</a><a href="b.parquet">b</a>
        <a href="sub/">sub/</a><a href="sub/deep.parquet">deep</a><a href="http://h/data/c.parquet#x">c</a><a>none</a>
        <a href="https://h/data/d.parquet">https</a><a href="http://u@h/data/e.parquet">user</a><a href="//evil/data/f.parquet">f</a>
        <a href="..%2f..%2fetc">up</a><a href="%2e%2e/">up</a><a href="http://[bad">bad</a><a href="g.parquet?token=1">g</a>"""
    assert entries(page, URL("http://h/data/")) == {"b.parquet": False, "sub": True, "c.parquet": False}
