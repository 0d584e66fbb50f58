/** The SDK as others get it: packed, unpacked below a node_modules, compiled against, bundled for a browser, and run. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { cp, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { promisify } from 'node:util'
import { createContext, runInContext } from 'node:vm'
import { build } from 'esbuild'
import { packageSdk } from '../../scripts/sdk.ts'

const run = promisify(execFile)
const root = resolve(import.meta.dirname, '../..')
const tsc = join(root, 'node_modules/.bin/tsc')

describe('the packed SDK', { timeout: 300_000 }, () => {
  let dir: string
  let project: string

  before(async () => {
    dir = await mkdtemp(join(tmpdir(), 'dm-'))
    project = join(dir, 'project')
    const packed = await packageSdk(join(dir, 'sdk'))
    await run('npm', ['pack', '--silent', '--pack-destination', dir], { cwd: packed })
    const archive = (await readdir(dir)).find((name) => name.endsWith('.tgz'))
    await mkdir(join(project, 'node_modules/@dormouse/api'), { recursive: true })
    await run('tar', ['-xf', join(dir, archive ?? ''), '-C', join(project, 'node_modules/@dormouse/api'), '--strip-components=1'])
    // What npm would have installed beside it.
    await symlink(join(root, 'node_modules/typebox'), join(project, 'node_modules/typebox'))
    await writeFile(join(project, 'package.json'), '{ "type": "module" }')
  })
  after(() => rm(dir, { recursive: true, force: true }))

  test('it holds what it says and nothing else', async () => {
    const unpacked = join(project, 'node_modules/@dormouse/api')
    const files = await readdir(unpacked, { recursive: true })
    assert.deepEqual(files.filter((name) => !name.startsWith('dist')).sort(), ['LICENSE', 'README.md', 'package.json'])
    assert.deepEqual(
      files.filter((name) => /\.(test\.|tsx?$)/.test(name) && !name.endsWith('.d.ts')),
      [],
    )
    const manifest = JSON.parse(await readFile(join(unpacked, 'package.json'), 'utf8'))
    assert.equal(manifest.private, undefined)
    assert.equal(manifest.sideEffects, false)
    for (const door of Object.values<{ types: string; default: string } | string>(manifest.exports)) {
      for (const file of typeof door === 'string' ? [door] : Object.values(door)) await readFile(join(unpacked, file))
    }
  })

  for (const [name, options, lib, types] of [
    ['a bundler for browsers', { module: 'preserve', moduleResolution: 'bundler' }, ['esnext', 'dom'], []],
    ['Node', { module: 'nodenext', moduleResolution: 'nodenext' }, ['esnext'], ['node']],
  ] as const) {
    test(`programs compile against it as ${name} would have it`, async () => {
      const place = join(project, name.replaceAll(' ', '-'))
      await mkdir(place)
      await writeFile(join(place, 'program.ts'), PROGRAM)
      if (types.length > 0) {
        await cp(join(root, 'examples'), join(place, 'examples'), { recursive: true, filter: (path) => !path.endsWith('.test.ts') })
        await symlink(join(root, 'node_modules/@types'), join(project, 'node_modules/@types'))
      }
      const compilerOptions = { ...options, target: 'esnext', strict: true, noEmit: true, lib, types, exactOptionalPropertyTypes: true }
      await writeFile(join(place, 'tsconfig.json'), JSON.stringify({ compilerOptions }))
      await run(tsc, ['-p', place, '--pretty', 'false']).catch((error: { stdout: string }) => assert.fail(error.stdout))
    })
  }

  test('it runs from below node_modules, where Node strips no types', async () => {
    await writeFile(
      join(project, 'run.js'),
      `import { Dormouse, AppError } from '@dormouse/api'
       import { admit } from '@dormouse/api/instance-states'
       import { routes } from '@dormouse/api/routes'
       const dormouse = new Dormouse({ baseUrl: 'http://127.0.0.1:1', retries: 0 })
       const error = await dormouse.call('getHealth').catch((error) => error)
       console.log(typeof admit, routes.getHealth.status, error instanceof AppError, error.message)`,
    )
    const { stdout } = await run(process.execPath, ['run.js'], { cwd: project })
    assert.equal(stdout, 'function 200 false fetch failed\n')
  })

  test('it is bundled for a browser without anything of Node or any schema, and works with what browsers have', async () => {
    await writeFile(join(project, 'page.js'), `export { Dormouse, AppError } from '@dormouse/api'`)
    const { outputFiles, metafile } = await build({
      ...{ entryPoints: [join(project, 'page.js')], bundle: true, platform: 'browser', format: 'iife', globalName: 'sdk' },
      ...{ write: false, metafile: true, minify: true, logLevel: 'silent', target: ['chrome120', 'firefox121', 'safari17.4'] },
    })
    assert.deepEqual(
      Object.keys(metafile.inputs).filter((name) => name.includes('typebox') || name.startsWith('node:')),
      [],
    )
    const { text } = outputFiles[0] as { text: string }
    assert.ok(text.length < 32_000, `${text.length} bytes`)

    const asked: string[] = []
    class Socket {
      readyState = 0
      bufferedAmount = 0
      constructor(url: string) {
        asked.push(url)
        setImmediate(() => this.onclose?.())
      }
      onclose: (() => void) | undefined
      close() {}
    }
    const answer = (status: number, body: unknown) => new Response(JSON.stringify(body), { status })
    const page = createContext({
      ...{ AbortController, AbortSignal, Blob, ReadableStream, TextDecoder, TextEncoder, URL, WebSocket: Socket, clearTimeout, setTimeout },
      fetch: async (url: string) => {
        asked.push(url)
        if (url.endsWith('/health')) return answer(200, { status: 'ok' })
        if (url.endsWith('/tickets')) return answer(201, { ticket: 'T', expires_at: new Date().toISOString() })
        return answer(409, { code: 'invalid_state', message: 'The instance web is Stopped: it must be Running' })
      },
    })
    const told = await runInContext(
      `${text};
      (async () => {
        const dormouse = new sdk.Dormouse({ baseUrl: 'https://dormouse.test/api', retries: 0 })
        const health = await dormouse.call('getHealth')
        const refused = await dormouse.exec('web', ['true']).catch((error) => error)
        const withToken = new sdk.Dormouse({ baseUrl: 'https://dormouse.test/api', token: 't', retries: 0 })
        const ticketed = await withToken.exec('web', ['true']).catch((error) => error)
        return JSON.stringify([health.status, refused instanceof sdk.AppError, refused.code, ticketed.code])
      })()`,
      page,
    )
    assert.deepEqual(JSON.parse(told), ['ok', true, 'invalid_state', 'invalid_state'])
    assert.deepEqual(asked, [
      'https://dormouse.test/api/health',
      'wss://dormouse.test/api/instances/web/exec',
      'https://dormouse.test/api/instances/web/exec',
      'https://dormouse.test/api/tickets',
      'wss://dormouse.test/api/instances/web/exec?ticket=T',
      'https://dormouse.test/api/instances/web/exec',
    ])
  })
})

const PROGRAM = `
import { AppError, Dormouse, type ErrorCode, type Instance } from '@dormouse/api'
import { admit } from '@dormouse/api/instance-states'
import { formatSize } from '@dormouse/api/units'

const dormouse = new Dormouse({ token: 't' })
const instance: Instance = await dormouse.call('getInstance', { params: { id: 'web' } })
const name: string = instance.name
const { exitCode, stdout } = await dormouse.run('web', ['true'], { timeoutMs: 1000 })
for await (const line of dormouse.logs('web')) line.toUpperCase()
for await (const { kind, subject } of dormouse.events()) kind.concat(subject)
// @ts-expect-error a route that is not there
await dormouse.call('getNothing')
// @ts-expect-error a parameter that is missing
await dormouse.call('getInstance')
// @ts-expect-error a field that does not exist
instance.nothing
const code: ErrorCode | undefined = instance instanceof AppError ? instance.code : undefined
export { admit, code, exitCode, formatSize, name, stdout }
`
