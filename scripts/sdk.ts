/**
 * `make sdk`: packages/api as others install it, in build/sdk: JavaScript and declarations, since Node strips no types below
 * node_modules and browsers none at all. `npm pack build/sdk` and `npm publish build/sdk` take it from there.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFile, mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'

const root = resolve(import.meta.dirname, '..')
const source = join(root, 'packages/api')

/** What others may import; all else may change from one version to the next. */
const DOORS: Readonly<Record<string, string>> = {
  '.': 'dormouse',
  './routes': 'routes',
  './instance-states': 'instance-states',
  './streams': 'streams',
  './units': 'units',
  './openapi': 'openapi',
}

/** Resolves with the directory of the package. What was there before is replaced when the new one is whole. */
export async function packageSdk(target = join(root, 'build/sdk')): Promise<string> {
  const draft = await mkdtemp(`${target}.`)
  try {
    await compile(join(draft, 'dist'))
    await writeFile(join(draft, 'package.json'), `${JSON.stringify(await manifest(), undefined, 2)}\n`)
    await copyFile(join(root, 'docs/sdk.md'), join(draft, 'README.md'))
    await copyFile(join(root, 'LICENSE'), join(draft, 'LICENSE'))
    await rm(target, { recursive: true, force: true })
    await rename(draft, target)
  } catch (error) {
    await rm(draft, { recursive: true, force: true })
    throw error
  }
  return target
}

async function manifest(): Promise<object> {
  const { name, version, dependencies } = JSON.parse(await readFile(join(source, 'package.json'), 'utf8')) as Record<string, unknown>
  const doors = Object.entries(DOORS).map(([door, file]) => [door, { types: `./dist/${file}.d.ts`, default: `./dist/${file}.js` }])
  return {
    ...{ name, version, description: 'The SDK of dormouse: OCI images as virtual machines', license: 'Apache-2.0', type: 'module' },
    exports: { ...Object.fromEntries(doors), './package.json': './package.json' },
    files: ['dist'],
    sideEffects: false,
    engines: { node: '>=22' },
    dependencies,
  }
}

/** Against the types of browsers alone: whoever needs one of Node's does not compile. */
async function compile(outDir: string): Promise<void> {
  const config = join(outDir, '../tsconfig.json')
  const compilerOptions = {
    ...{ noEmit: false, declaration: true, allowImportingTsExtensions: false, rewriteRelativeImportExtensions: true },
    ...{ target: 'es2022', lib: ['esnext', 'dom'], types: [], rootDir: join(source, 'src'), outDir },
  }
  const files = Object.values(DOORS).map((file) => join(source, 'src', `${file}.ts`))
  await writeFile(config, JSON.stringify({ extends: join(root, 'tsconfig.json'), compilerOptions, files, include: [] }))
  const child = spawn(join(root, 'node_modules/.bin/tsc'), ['-p', config, '--pretty', 'false'], { stdio: ['ignore', 'pipe', 'inherit'] })
  let output = ''
  child.stdout.on('data', (chunk: Buffer) => {
    output += chunk
  })
  const [code] = await once(child, 'close')
  if (code !== 0) throw new Error(`The SDK does not compile for browsers:\n${output}`)
  await rm(config)
}

if (import.meta.main) console.log(await packageSdk())
