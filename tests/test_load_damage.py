"Files of every layout, damaged in every way: a right answer or one sentence; what is harmless changes nothing."
import csv, gzip, io, json, os

import numpy as np
import polars as pl
from hypothesis import given, settings, strategies as st

from gentok.data.formats import load, report
from test_formats import ids, published, put, text

examples = int(os.environ.get('GENTOK_EXAMPLES', 70)) # of each test
odd_values = ('', ' ', 'NULL', 'nan', 'NaN', r'\N', 'inf', '-1', '0', '3.5', '1e400', 'noon', '2024-02-30', '2024-01-01', '1600000000000', '99999999999999999999', '[1]', '{}', '[', '{"a": 1}', '"', "'", 'a"b', 'é', '\u2028', '\x00', '\t', ',', '::', '|', '\r',
              '0x1f', 'true', 'user', 'item', '\ud83d'.encode('utf-8', 'surrogatepass').decode('latin-1'), 'x'*5000, '9'*400, '-' , '_', '../..', '%s{}')

# ---- damage -------------------------------------------------------------------------------------------------------

def separator(name, line): return '::' if name.startswith(('ratings.dat', 'movies.dat')) else '|' if name.startswith('u.item') else ' ' if name.endswith('.txt') else max(',\t;', key=line.count)

def of_rows(change): # of a change of the list of lines
    def changed(raw, name, rng):
        rows = raw.split(b'\n')
        return b'\n'.join(change(rows, int(rng.integers(len(rows))), name, rng))
    return changed

def cell(rows, at, name, rng):
    "One value is another"
    new = str(rng.choice(odd_values)).encode('utf-8', 'replace')
    if b'{' in rows[at] and name.endswith(('json', 'jsonl', 'gz')):
        parts = rows[at].split(b', ')
        p = int(rng.integers(len(parts)))
        parts[p] = parts[p].partition(b': ')[0] + b': ' + (b'"%s"' % new if rng.random() < .5 else new)
        return rows[:at] + [b', '.join(parts)] + rows[at + 1:]
    sep = separator(name, rows[0].decode('latin-1')).encode()
    parts = rows[at].split(sep)
    parts[int(rng.integers(len(parts)))] = new
    return rows[:at] + [sep.join(parts)] + rows[at + 1:]

def swap(rows, at, name, rng):
    "Two values of a row, perhaps of the header, change places"
    at = at if rng.random() < .6 else 0
    sep = b', ' if b'{' in rows[at] else separator(name, rows[0].decode('latin-1')).encode()
    parts = rows[at].split(sep)
    a, b = rng.integers(len(parts), size=2)
    parts[a], parts[b] = parts[b], parts[a]
    return rows[:at] + [sep.join(parts)] + rows[at + 1:]

def bytewise(change):
    def changed(raw, name, rng):
        at = int(rng.integers(len(raw) + 1))
        return change(raw, at, rng)
    return changed

harms = dict(
    cell=of_rows(cell), swap=of_rows(swap),
    cut_line=of_rows(lambda rows, at, name, rng: rows[:at] + [rows[at][:int(rng.integers(len(rows[at]) + 1))]] + rows[at + 1:]),
    no_line=of_rows(lambda rows, at, *_: rows[:at] + rows[at + 1:]),
    twice=of_rows(lambda rows, at, *_: rows[:at + 1] + rows[at:]),
    header_again=of_rows(lambda rows, at, *_: rows[:at] + rows[:1] + rows[at:]),
    no_header=of_rows(lambda rows, *_: rows[1:]),
    joined_lines=of_rows(lambda rows, at, *_: rows[:at] + [b''.join(rows[at:at + 2])] + rows[at + 2:]),
    cut=bytewise(lambda raw, at, rng: raw[:at]), lost=bytewise(lambda raw, at, rng: raw[:at] + raw[at + int(rng.integers(1, 9)):]),
    double=bytewise(lambda raw, at, rng: raw[:at] + raw[max(0, at - int(rng.integers(1, 9))):]),
    byte=bytewise(lambda raw, at, rng: raw[:at] + bytes([rng.integers(256)]) + raw[at + 1:]), added=bytewise(lambda raw, at, rng: raw[:at] + bytes([rng.integers(256)]) + raw[at:]),
    quote=bytewise(lambda raw, at, rng: raw[:at] + b'"' + raw[at:]),
    utf16=lambda raw, name, rng: raw.decode('latin-1').encode('utf-16'), latin=lambda raw, name, rng: raw.replace(b'a', 'é'.encode('latin-1'), 1), cr=lambda raw, name, rng: raw.replace(b'\n', b'\r'),
    empty=lambda raw, name, rng: b'', blank=lambda raw, name, rng: b'\n \n', zeros=lambda raw, name, rng: b'\0'*64, gz_inside=lambda raw, name, rng: gzip.compress(raw), page=lambda raw, name, rng: b'<!DOCTYPE html>\n<html><body>404</body></html>\n',
)

def damaged_frame(frame, rng):
    "A frame with a column of another type, of another name, missing, or with holes"
    name, kind = str(rng.choice(frame.columns)), int(rng.integers(9))
    if kind == 0: return frame.drop(name)
    if kind == 1: return frame.rename({name: str(rng.choice([c for c in ('x', 'User', 'ITEM ', 'time', 'date', '') if c not in frame.columns]))})
    if kind == 2: return frame.with_columns(pl.when(pl.int_range(pl.len()) != int(rng.integers(frame.height))).then(pl.col(name)).alias(name))
    if kind == 3: return frame.clear()
    if kind == 4: return frame.with_columns(pl.struct(a=name).alias(name))
    if kind == 5: return frame.with_columns(pl.concat_list(name).alias(name))
    if kind == 6: return frame.with_columns(pl.lit(None).alias(name))
    if kind == 7: return frame.with_columns(pl.lit(b'\xff\xfe').alias(name))
    return frame.with_columns(pl.Series(name, [float(rng.choice([np.nan, np.inf, 1.5, 1e300])) for _ in range(frame.height)]))

def raw_of(value): return value.encode() if isinstance(value, str) else value

def damaged(name, seed, n):
    "The files of a layout after n mutations, and what was done"
    rng, files, done = np.random.default_rng(seed), dict(published[name][0]), []
    for _ in range(n):
        file, harm = str(rng.choice([f for f in files if not f.endswith('jpg')])), str(rng.choice(sorted(harms)))
        value = files[file]
        if isinstance(value, pl.DataFrame):
            if rng.random() < .7 and value.width and value.height: files[file] = damaged_frame(value, rng); done.append((file, 'frame')); continue
            (value.write_parquet if file.endswith('parquet') else value.write_ipc_stream)(out := io.BytesIO())
            value = out.getvalue()
        files[file] = harms[harm](raw_of(value), file, rng)
        done.append((file, harm))
    cut = rng.random() < .2 # the compressed bytes themselves
    for file, value in files.items():
        if file.endswith('.gz'):
            value = gzip.compress(raw_of(value))
            files[file] = value[:int(rng.integers(len(value)))] if cut else value
    return files, done

def check_damaged(folder, name, seed, n):
    files, done = damaged(name, seed, n)
    put(folder, **files)
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    try: data = load(folder, **published[name][1])
    except (ValueError, FileNotFoundError) as e:
        said = str(e)
        assert type(e) in (ValueError, FileNotFoundError), (done, type(e), e)
        assert str(folder) in said and '\n' not in said and said.endswith('.') and len(said) < 600, (done, said)
    else:
        said = report(data).split('\n')
        assert all(line.startswith(('removed: ', 'note: ')) for line in said[1:]), (done, said)
        if name not in ('shards', 'own JSON lines'): assert len(data.histories), ('a catalogue alone', done)
    assert {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()} == before

@settings(max_examples=examples, deadline=None, database=None)
@given(name=st.sampled_from(sorted(published)), seed=st.integers(0, 2**32 - 1), n=st.sampled_from([1, 1, 1, 2, 4]))
def test_damage_is_a_sentence_or_a_data_set(tmp_path_factory, name, seed, n): check_damaged(tmp_path_factory.mktemp('d'), name, seed, n)

# ---- what is harmless ---------------------------------------------------------------------------------------------

def headed(name): return name.removesuffix('.gz').endswith(('.csv', '.tsv', '.inter', '.item')) and not name.startswith(('u.', 'behaviors', 'news')) and 'SUCCESS' not in name
def objects(name): return name.removesuffix('.gz').endswith(('.jsonl', '_5.json', 'Shop.json')) or 'yelp' in name or 'steam' in name and 'json' in name

def columns(files, rng):
    "The columns of every table in another order"
    made = {}
    for name, value in files.items():
        if isinstance(value, pl.DataFrame): value = value.select(list(rng.permutation(value.columns))) if '-of-' not in name and 'part-' not in name else value
        elif headed(name) and '-of-' not in name and 'part-' not in name:
            quoted = name.removesuffix('.gz').endswith('.csv')
            rows = list(csv.reader(io.StringIO(value), delimiter=',' if quoted else '\t', quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE))
            order = rng.permutation(len(rows[0]))
            out = io.StringIO()
            if quoted: csv.writer(out, lineterminator='\n').writerows([r[c] for c in order] for r in rows)
            value = out.getvalue() if quoted else ''.join('\t'.join(r[c] for c in order) + '\n' for r in rows)
        elif objects(name) and not value.startswith('{u') and not value.startswith("{'"):
            value = ''.join(json.dumps(dict(list(o.items())[int(c)] for c in rng.permutation(len(o)))) + '\n' for o in map(json.loads, value.splitlines()))
        made[name] = value
    return made

def lined(change): # of the lines after the header
    def changed(files, rng):
        made = {}
        for name, value in files.items():
            if isinstance(value, pl.DataFrame) or not isinstance(value, (str, bytes)) or name.endswith(('.inter.json', '.item.json', 'info.json', 'state.json', 'png', 'jpg', '_SUCCESS', '.crc', '.md', 'README', 'README.txt')): made[name] = value; continue
            rows = raw_of(value).splitlines(keepends=True)
            raw = b''.join(change(rows[:headed(name)], rows[headed(name):], rng))
            made[name] = raw.decode() if isinstance(value, str) else raw
        return made
    return changed

def rows_of_frames(files, rng): return {k: v[rng.permutation(v.height)] if isinstance(v, pl.DataFrame) else v for k, v in files.items()}
def shuffled(head, rows, rng): return [*head, *(rows[int(r)] for r in rng.permutation(len(rows)))]
def blanks(head, rows, rng): return [*head, *(part for r in rows for part in [b'\n']*int(rng.integers(3)) + [r]), b'\n']
def ended(end): return lambda files, rng: {k: v if not isinstance(v, (str, bytes)) or k.endswith(('jpg', 'png')) else v.replace('\n', end) if isinstance(v, str) else v.replace(b'\n', end.encode()) for k, v in files.items()}
def marked(files, rng): return {k: '\ufeff' + v if isinstance(v, str) and v and not k.endswith(('_SUCCESS', 'info.json', 'state.json')) else v for k, v in files.items()}
def unended(files, rng): return {k: v.rstrip('\n') if isinstance(v, str) else v for k, v in files.items()}
def zipped(files, rng): return {k + '.gz' if isinstance(v, str) and (headed(k) or objects(k)) and not k.endswith('.gz') else k: v for k, v in files.items()}

harmless = dict(columns=columns, rows=lined(shuffled), frames=rows_of_frames, blank_lines=lined(blanks), bom=marked, crlf=ended('\r\n'), cr=ended('\r'), no_last_end=unended, zipped=zipped)

@settings(max_examples=examples, deadline=None, database=None)
@given(name=st.sampled_from(sorted(published)), change=st.lists(st.sampled_from(sorted(harmless)), min_size=1, max_size=2, unique=True), seed=st.integers(0, 2**32 - 1))
def test_what_is_harmless_changes_nothing(tmp_path_factory, name, change, seed):
    files, asked, want, words = published[name]
    if 'rows' in change and name == 'lines of items (SASRec)': return # their order is the time
    for c in sorted(change, key=['columns', 'frames', 'rows', 'blank_lines', 'no_last_end', 'bom', 'cr', 'crlf', 'zipped'].index): files = harmless[c](files, np.random.default_rng(seed))
    data = load(put(tmp_path_factory.mktemp('h'), **files), **asked)
    assert ids(data) == want, change
    if words and not (name == 'RecBole' and 'columns' in change): assert text(data) == words, change # its texts are in the order of the columns

# ---- a damaged table that is read is read as Python's csv reads it --------------------------------------------------

wide = {'interactions.csv': 'user,item,note,time\n' + ''.join(f'{u},{i},"a, {t}",{t}\n' for t, (u, i) in enumerate((u, i) for i in 'pqr' for u in 'uvw')), 'items.csv': 'item,text\np,x\nq,y\nr,z\n'}

@settings(max_examples=examples, deadline=None, database=None)
@given(seed=st.integers(0, 2**32 - 1), harm=st.sampled_from(['cell', 'swap', 'cut_line', 'no_line', 'twice', 'joined_lines', 'lost', 'double', 'byte', 'added', 'quote', 'cut']), gz=st.sampled_from(['', '.gz']))
def test_a_damaged_table_is_read_as_csv_reads_it(tmp_path_factory, seed, harm, gz):
    raw = harms[harm](wide['interactions.csv'].encode(), 'interactions.csv', np.random.default_rng(seed))
    folder = put(tmp_path_factory.mktemp('c'), **{'items.csv': wide['items.csv'], 'interactions.csv' + gz: gzip.compress(raw) if gz else raw})
    try: data = load(folder)
    except ValueError as e: assert str(folder) in str(e); return
    assert len(data.histories), 'a catalogue alone'
    head, *rows = csv.reader(io.StringIO(raw.decode('utf-8-sig'), newline=None))
    at = [[h.strip().lower() for h in head].index(name) for name in ('user', 'item', 'time')]
    told = [tuple(r[c].strip() for c in at) for r in rows if r and r != head]
    told = [r for r in dict.fromkeys((u, i, float(t)) for u, i, t in told) if r[1] in tuple('pqr')] # 'qr' is none of the items
    want = {}
    for u, i, _ in sorted(told, key=lambda r: r[2]): want.setdefault(u, []).append(i)
    assert ids(data) == want
