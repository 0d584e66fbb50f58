import assert from 'node:assert/strict'
import { lstat, mkdir, mkdtemp, readdir, readFile, readlink, realpath, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import test, { type TestContext } from 'node:test'
import type { CopyHeader } from '@dormouse/api/streams.ts'
import fc from 'fast-check'
import { parseEntryPath, staysInside } from './entry-path.ts'
import { type TreeOptions, TreeWriter } from './tree-writer.ts'

type Sent = { readonly path: string; readonly dir?: true; readonly link?: string; readonly text?: string; readonly mode?: number }

const headerOf = ({ path, dir, link, text, mode }: Sent): CopyHeader => ({
  type: 'header',
  path,
  mode: mode ?? (dir ? 0o755 : 0o644),
  is_dir: dir === true,
  ...(link !== undefined && { is_symlink: true, link_target: link }),
  size: text?.length ?? 0,
  mtime: 1_700_000_000,
})

async function writeTree(root: string, sent: readonly Sent[], options: TreeOptions = {}): Promise<TreeWriter> {
  await using writer = new TreeWriter(root, options)
  for (const each of sent) {
    const [, ...below] = parseEntryPath(each.path)
    await writer.begin(below, headerOf(each))
    if (each.text) await writer.write(Buffer.from(each.text))
    await writer.end()
  }
  await writer.finish()
  return writer
}

async function scratch(t: TestContext): Promise<string> {
  const dir = await realpath(await mkdtemp(join(tmpdir(), 'dm-')))
  t.after(() => rm(dir, { recursive: true }))
  return dir
}

test('files, directories and links come out with their modes and times, without set-id bits', async (t) => {
  const root = join(await scratch(t), 'out')
  const writer = await writeTree(root, [
    { path: 'src', dir: true, mode: 0o555 },
    { path: 'src/run', text: 'hello', mode: 0o4755 },
    { path: 'src/empty' },
    { path: 'src/link', link: './run' },
  ])
  assert.equal(await readFile(join(root, 'run'), 'utf8'), 'hello')
  assert.equal((await stat(join(root, 'run'))).mode & 0o7777, 0o755)
  assert.equal((await stat(join(root, 'run'))).mtimeMs, 1_700_000_000_000)
  assert.equal((await stat(root)).mode & 0o7777, 0o555)
  assert.equal(await readlink(join(root, 'link')), './run')
  assert.deepEqual([writer.files, writer.bytes, writer.skipped], [2, 5, []])
})

test('a link that leads out is left out and named, unless it is asked for', async (t) => {
  const dir = await scratch(t)
  const sent: Sent[] = [
    { path: 'src', dir: true },
    { path: 'src/a', link: '/etc/passwd' },
    { path: 'src/b', link: '../../up' },
    { path: 'src/c', link: 'd/../../..' },
  ]
  assert.deepEqual((await writeTree(join(dir, 'safe'), sent)).skipped, ['src/a -> /etc/passwd', 'src/b -> ../../up', 'src/c -> d/../../..'])
  assert.deepEqual(await readdir(join(dir, 'safe')), [])
  await writeTree(join(dir, 'all'), sent, { keepEveryLink: true })
  assert.equal(await readlink(join(dir, 'all', 'a')), '/etc/passwd')
})

test('nothing is written through a link, whether the guest sent it or it was there before', async (t) => {
  const dir = await scratch(t)
  await mkdir(join(dir, 'elsewhere'))
  await writeFile(join(dir, 'elsewhere/file'), 'mine')
  await mkdir(join(dir, 'out'))
  await symlink('../elsewhere', join(dir, 'out/was-there'))
  await symlink('../elsewhere/file', join(dir, 'out/file'))

  await assert.rejects(
    writeTree(join(dir, 'out'), [
      { path: 's', dir: true },
      { path: 's/sent', link: '../elsewhere' },
      { path: 's/sent/x', text: 'no' },
    ]),
    /before its directory/,
  )
  await assert.rejects(
    writeTree(join(dir, 'out'), [
      { path: 's', dir: true },
      { path: 's/was-there', dir: true },
      { path: 's/was-there/x', text: 'no' },
    ]),
    /is a link here/,
  )
  await assert.rejects(
    writeTree(join(dir, 'out'), [
      { path: 's', dir: true },
      { path: 's/was-there/x', text: 'no' },
    ]),
    /before its directory/,
  )
  await writeTree(join(dir, 'out'), [
    { path: 's', dir: true },
    { path: 's/file', text: 'theirs' },
  ])

  assert.deepEqual(await readdir(join(dir, 'elsewhere')), ['file'])
  assert.equal(await readFile(join(dir, 'elsewhere/file'), 'utf8'), 'mine')
  assert.ok((await lstat(join(dir, 'out/file'))).isFile())
})

test('a copy that ends early leaves no half file', async (t) => {
  const dir = await scratch(t)
  {
    await using writer = new TreeWriter(join(dir, 'file'))
    await writer.begin([], headerOf({ path: 'file', text: 'whole' }))
    await writer.write(Buffer.from('ha'))
  }
  assert.deepEqual(await readdir(dir), [])
})

test('names that lead elsewhere are refused', () => {
  for (const path of ['', '/', '/etc/passwd', '..', '../x', 'a/../b', 'a//b', './a', 'a/.', 'a\0b', 'a/..'])
    assert.throws(() => parseEntryPath(path), /leads elsewhere/, path)
  assert.deepEqual(parseEntryPath('a/b..c/...'), ['a', 'b..c', '...'])
  assert.deepEqual(parseEntryPath('dir/'), ['dir'])
})

test('a link that stays inside really does, wherever the links of the copy lead', () => {
  // Directories d0/d1/d2 hold links; each is judged by staysInside, then followed as a kernel would.
  const step = fc.constantFrom('..', '.', 'd0', 'd1', 'd2', 'l0', 'l1', 'l2')
  const target = fc.array(step, { minLength: 1, maxLength: 6 }).map((steps) => steps.join('/'))
  const link = fc.record({ depth: fc.integer({ min: 0, max: 3 }), name: fc.constantFrom('l0', 'l1', 'l2'), target })
  fc.assert(
    fc.property(fc.array(link, { maxLength: 8 }), (links) => {
      const kept = new Map<string, string>()
      for (const each of links)
        if (staysInside(each.target, each.depth)) kept.set([...directory(each.depth), each.name].join('/'), each.target)
      for (const each of kept.keys()) assert.notEqual(follow(each.split('/'), kept), 'outside', each)
    }),
    { numRuns: 2000 },
  )
})

const directory = (depth: number): string[] => ['d0', 'd1', 'd2'].slice(0, depth)

function follow(
  path: readonly string[],
  links: ReadonlyMap<string, string>,
  budget = { left: 40 },
  from: readonly string[] = [],
): string[] | 'outside' {
  let at = [...from]
  for (const step of path) {
    if (step === '.') continue
    if (step === '..') {
      if (at.length === 0) return 'outside'
      at = at.slice(0, -1)
      continue
    }
    const target = links.get([...at, step].join('/'))
    if (target === undefined) at.push(step)
    else {
      if (budget.left-- <= 0) return at
      const reached = follow(target.split('/'), links, budget, at)
      if (reached === 'outside') return 'outside'
      at = reached
    }
  }
  return at
}

test('whatever a guest sends, nothing outside the target changes', async (t) => {
  const dir = await scratch(t)
  const name = fc.constantFrom('a', 'b', '..', '.', '', 'c', 'a/b', 'x\0')
  const path = fc.array(name, { minLength: 1, maxLength: 4 }).map((names) => ['s', ...names].join('/'))
  const entry: fc.Arbitrary<Sent> = fc.oneof(
    path.map((path) => ({ path, dir: true as const })),
    path.map((path) => ({ path, text: 'bytes' })),
    fc.record({ path, link: fc.constantFrom('..', '../outside', '/tmp', 'a', '.', '../../outside', 'a/..') }),
  )
  let run = 0
  await fc.assert(
    fc.asyncProperty(fc.array(entry, { maxLength: 12 }), fc.boolean(), async (entries, keepEveryLink) => {
      const here = join(dir, String(run++))
      await mkdir(join(here, 'outside'), { recursive: true })
      await writeFile(join(here, 'outside/file'), 'mine')
      // Twice over the same target: the second copy meets what the first one left.
      for (let round = 0; round < 2; round++) {
        await writeTree(join(here, 'target'), [{ path: 's', dir: true }, ...entries], { keepEveryLink }).catch((error: Error) =>
          assert.match(error.message, /guest|here|EEXIST|EISDIR|ENOTDIR|ENOTEMPTY/),
        )
      }
      assert.deepEqual(await readdir(join(here, 'outside')), ['file'])
      assert.deepEqual((await readdir(here)).sort(), ['outside', 'target'])
      assert.equal(dirname(await realpath(join(here, 'target'))), here)
    }),
    { numRuns: 200 },
  )
})
