/**
 * `make install`: one bundled file each for daemon and CLI, the Node they were tested with, guest, kernel, shim, the unit.
 *
 *   PREFIX/bin/dormouse                         the command
 *   PREFIX/lib/dormouse/                        everything else; replaced as a whole, so an upgrade is never half there
 *   PREFIX/lib/systemd/system/dormouse.service
 *   /etc/dormouse/config.json                   only when there is none yet
 *
 * Files that running VMs hold open (kernel modules, shim) are unlinked, never written over: those VMs keep the old ones.
 */
import { chmod, copyFile, cp, mkdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { build } from 'esbuild'

const root = resolve(import.meta.dirname, '..')

/** What of build/ goes onto a host. The unpacked modules are only needed to build the initrd. */
const ASSETS = [
  'guest/dormouse-guest',
  'guest/initrd.cpio',
  'guest/rehearsal.squashfs',
  'kernel/vmlinux',
  'kernel/modules.squashfs',
  'kernel/version',
  'shim/dormouse-shim',
  'shim/dormouse-net',
  'shim/dormouse-fill',
]

const { values } = parseArgs({
  options: {
    prefix: { type: 'string', default: '/usr/local' },
    destdir: { type: 'string', default: '' },
    etc: { type: 'string', default: '/etc/dormouse' },
  },
})
const prefix = resolve(values.prefix)
/** Where a file is put now, which DESTDIR may move away from where it will be used. */
const staged = (path: string): string => (values.destdir === '' ? path : join(resolve(values.destdir), path))

const lib = join(prefix, 'lib/dormouse')
await installLibrary(staged(lib))
await installFile(join(root, 'bin/dormouse'), staged(join(prefix, 'bin/dormouse')), 0o755)
const unit = (await readFile(join(root, 'scripts/install/dormouse.service'), 'utf8')).replaceAll('@LIB@', lib)
await installText(unit, staged(join(prefix, 'lib/systemd/system/dormouse.service')))
await installText(await readFile(join(root, 'scripts/install/config.json'), 'utf8'), staged(join(values.etc, 'config.json')), {
  keep: true,
})
console.log(`Installed dormouse below ${staged(prefix)}`)
if (values.destdir === '') console.log('Start it with: systemctl daemon-reload && systemctl enable --now dormouse')

async function installLibrary(target: string): Promise<void> {
  const draft = `${target}.draft`
  const old = `${target}.old`
  await rm(draft, { recursive: true, force: true })
  await bundle(join(draft, 'cli'), { main: 'packages/cli/src/main.ts' })
  await bundle(join(draft, 'daemon'), {
    main: 'packages/daemon/src/main.ts',
    // Started as a process, by its place beside main.js (docs/decisions/0021).
    'conversion-worker': 'packages/daemon/src/images/conversion-worker.ts',
    'egress-worker': 'packages/daemon/src/egress/egress-worker.ts',
  })
  await writeFile(
    join(draft, 'package.json'),
    `${JSON.stringify({ name: 'dormouse', version: await version(), type: 'module' }, undefined, 2)}\n`,
  )
  await installFile(process.execPath, join(draft, 'node'), 0o755)
  for (const asset of ASSETS) {
    // Below the daemon's own directory, where it looks for them unless it is told otherwise.
    const place = join(draft, 'daemon', asset)
    await mkdir(dirname(place), { recursive: true })
    await cp(join(root, 'build', asset), place, { preserveTimestamps: true })
  }
  await rm(old, { recursive: true, force: true })
  await rename(target, old).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') throw error
  })
  await rename(draft, target)
  await rm(old, { recursive: true, force: true })
}

async function bundle(outdir: string, entryPoints: Record<string, string>): Promise<void> {
  await build({
    absWorkingDir: root,
    entryPoints,
    outdir,
    bundle: true,
    splitting: true,
    platform: 'node',
    target: 'node24',
    format: 'esm',
    // Names stay, so that a stack trace can be read; the rest is read faster without blanks.
    minifySyntax: true,
    minifyWhitespace: true,
    legalComments: 'linked',
    logLevel: 'warning',
    // Packages that are still CommonJS ask for `require`, which a module does not have.
    banner: { js: "import { createRequire } from 'node:module'; const require = createRequire(import.meta.url);" },
  })
}

async function version(): Promise<string> {
  const { version } = JSON.parse(await readFile(join(root, 'packages/daemon/package.json'), 'utf8')) as { version: string }
  return version
}

/** Beside its place first, then renamed: a running program is never written over. */
async function installFile(source: string, target: string, mode: number): Promise<void> {
  await mkdir(dirname(target), { recursive: true })
  await copyFile(source, `${target}.draft`)
  await chmod(`${target}.draft`, mode)
  await rename(`${target}.draft`, target)
}

async function installText(text: string, target: string, options: { keep?: boolean } = {}): Promise<void> {
  await mkdir(dirname(target), { recursive: true })
  await writeFile(target, text, { flag: options.keep ? 'wx' : 'w' }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EEXIST') throw error
  })
}
