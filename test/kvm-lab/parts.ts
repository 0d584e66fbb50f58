/**
 * What the lab's machine is made of, below build/kvm-lab: a Debian with what the tests need, an initrd for the kernel that guests have too,
 * and this checkout. The first is made once; the others, which take seconds, each time.
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { chmod, copyFile, mkdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import type { Step } from '../../packages/daemon/src/lib/step.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'
import { findPrograms } from './programs.ts'

export interface Parts {
  readonly kernel: string
  readonly initrd: string
  /** Disks in the order in which the machine has them: the system, the project, the kernel's modules, programs of others. */
  readonly disks: readonly string[]
}

const BUILD = join(REPOSITORY, 'build')
const LAB = join(BUILD, 'kvm-lab')
/** What the machine's init needs to mount its disks. */
const BOOT_MODULES = ['virtio_blk', 'virtio_pci', 'squashfs', 'overlay']
/** Beside the packages of the daemon and of its tests: what they are linked to, and what builds the programs of tests for their guests. */
const LAB_PACKAGES = ['gcc', 'libc6-dev', 'kmod', 'iputils-ping', 'libslirp0', 'libseccomp2', 'libext2fs2', 'psmisc', 'python3-minimal']
/** Packages of the tests that no story in the lab asks for, and that are large. */
const LEFT_OUT = new Set(['clang-14', 'libclang-rt-14-dev', 'shellcheck'])

export async function makeParts(step: Step, say: (words: string) => void): Promise<Parts> {
  await mkdir(LAB, { recursive: true })
  return {
    kernel: join(BUILD, 'kernel/vmlinux'),
    disks: [
      await makeSystem(step, say),
      await makeProject(step),
      join(BUILD, 'kernel/modules.squashfs'),
      await makePrograms(await findPrograms(), step, say),
    ],
    initrd: await makeInitrd(step),
  }
}

/** The packages of `scripts/setup/packages.txt` that run or test the daemon. */
async function packagesOf(): Promise<string[]> {
  const lines = (await readFile(join(REPOSITORY, 'scripts/setup/packages.txt'), 'utf8')).split('\n')
  const listed = lines.map((line) => line.split(/\s+/)).filter(([group]) => group === 'run' || group === 'test')
  const names = [...listed.map(([, name = '']) => name), 'busybox-static', ...LAB_PACKAGES]
  return [...new Set(names)].filter((name) => !LEFT_OUT.has(name)).sort()
}

async function makeSystem(step: Step, say: (words: string) => void): Promise<string> {
  const packages = await packagesOf()
  const key = createHash('sha256').update(packages.join()).digest('hex').slice(0, 16)
  const path = join(LAB, `system-${key}.squashfs`)
  if (await exists(path)) return path
  say('making its Debian, once')
  const draft = `${path}.draft`
  const make = spawn('mmdebstrap', ['--quiet', '--mode=root', '--variant=minbase', `--include=${packages.join()}`, 'bookworm', '-'], {
    stdio: ['ignore', 'pipe', 'inherit'],
    signal: step.signal,
  })
  const pack = spawn('tar2sqfs', ['-q', '-f', '-c', 'lz4', draft], { stdio: ['pipe', 'inherit', 'inherit'], signal: step.signal })
  await Promise.all([succeeds(make, 'mmdebstrap'), succeeds(pack, 'tar2sqfs'), pipeline(make.stdout, pack.stdin)])
  await rename(draft, path)
  return path
}

/** All that a run needs, and nothing that it would only make again. */
async function makeProject(step: Step): Promise<string> {
  const path = join(LAB, 'project.squashfs')
  const left = ['.git', 'build/kvm-lab', 'build/cache', 'build/check', 'build/dev', 'bench/out'].map((place) => `--exclude=./${place}`)
  await packDir(REPOSITORY, left, path, step)
  return path
}

/** A disk of them all, which is empty where there are none. */
async function makePrograms(programs: Awaited<ReturnType<typeof findPrograms>>, step: Step, say: (words: string) => void): Promise<string> {
  const dir = join(LAB, 'programs')
  await rm(dir, { recursive: true, force: true })
  await mkdir(dir)
  for (const [name, file] of programs) {
    say(`it gets ${name}: ${file}`)
    await copyFile(file, join(dir, name))
    await chmod(join(dir, name), 0o755)
  }
  await packDir(dir, [], `${dir}.squashfs`, step)
  return `${dir}.squashfs`
}

async function packDir(dir: string, left: readonly string[], path: string, step: Step): Promise<void> {
  // Another machine may still read the file of that name.
  await rm(path, { force: true })
  const collect = spawn('tar', ['-c', ...left, '-C', dir, '.'], { stdio: ['ignore', 'pipe', 'inherit'], signal: step.signal })
  const pack = spawn('tar2sqfs', ['-q', '-f', '-c', 'lz4', path], { stdio: ['pipe', 'inherit', 'inherit'], signal: step.signal })
  await Promise.all([succeeds(collect, 'tar'), succeeds(pack, 'tar2sqfs'), pipeline(collect.stdout, pack.stdin)])
}

async function makeInitrd(step: Step): Promise<string> {
  const root = join(LAB, 'initrd')
  const path = join(LAB, 'initrd.cpio')
  await rm(root, { recursive: true, force: true })
  for (const place of ['bin', 'modules', 'proc', 'sys', 'dev', 'root', 'lower', 'above'])
    await mkdir(join(root, place), { recursive: true })
  await copyFile('/bin/busybox', join(root, 'bin/busybox'))
  const files = (await Promise.all(BOOT_MODULES.map((name) => filesOf(name, step)))).flat()
  // In the order in which they are put in: what another needs comes first.
  for (const [index, file] of [...new Set(files)].entries()) {
    await copyFile(file, join(root, 'modules', `${String(index).padStart(2, '0')}.ko`))
  }
  await copyFile(join(import.meta.dirname, 'initrd-init'), join(root, 'init'))
  await chmod(join(root, 'init'), 0o755)
  const names = ['.', 'bin', 'bin/busybox', 'modules', 'proc', 'sys', 'dev', 'root', 'lower', 'above', 'init']
  const modules = [...new Set(files)].map((_, index) => `modules/${String(index).padStart(2, '0')}.ko`)
  const argv = ['cpio', '--quiet', '-o', '-H', 'newc', '-F', path] as const
  await runCommand([...argv], { step, cwd: root, input: `${[...names, ...modules].join('\n')}\n` })
  return path
}

/** The files of a module and of what it needs. */
async function filesOf(module: string, step: Step): Promise<string[]> {
  const version = (await readFile(join(BUILD, 'kernel/version'), 'utf8')).trim()
  const argv = ['modprobe', '-S', version, '-d', join(BUILD, 'kernel/modules'), '--show-depends', module] as const
  const { stdout } = await runCommand([...argv], { step })
  return stdout.split('\n').flatMap((line) => /^insmod (\S+)/.exec(line)?.[1] ?? [])
}

async function succeeds(child: ReturnType<typeof spawn>, name: string): Promise<void> {
  const [code, signal] = await once(child, 'exit')
  if (code !== 0) throw new Error(`${name} ended with ${code ?? signal}; its own words are above`)
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  )
