/** An image of a size that people have: Debian packages unpacked over each other, some 250 MB in many thousand files. */
import { mkdir, readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { runCommand } from '../packages/daemon/src/host/run-command.ts'
import { REPOSITORY } from '../test/harness/daemon-process.ts'
import { type OciLayout, writeOciLayout } from '../test/harness/oci-layout.ts'
import { tarTree } from '../test/harness/tar-tree.ts'

/** Programs, libraries, scripts and many small files: a language's libraries, a compiler, documentation. */
const PACKAGES = [
  ...['bash', 'binutils-x86-64-linux-gnu', 'coreutils', 'git', 'libc6', 'libgcc-12-dev', 'libperl5.36'],
  ...['libpython3.11-minimal', 'libpython3.11-stdlib', 'libstdc++-12-dev', 'locales', 'openssl', 'perl-base', 'perl-modules-5.36'],
  ...['python3.11-minimal', 'tzdata', 'vim-runtime'],
]

/** Downloads are kept in build/, so that only the first bench waits for them. */
const DOWNLOADS = join(REPOSITORY, 'build/bench/packages')
const step = () => ({ signal: AbortSignal.timeout(600_000) })

export async function makeDebianImage(dir: string): Promise<OciLayout & { rootTarBytes: number }> {
  await download()
  const tree = join(dir, 'tree')
  await mkdir(tree, { recursive: true })
  for (const name of await readdir(DOWNLOADS)) await runCommand(['dpkg-deb', '-x', join(DOWNLOADS, name), tree], { step: step() })
  const tar = join(dir, 'root.tar')
  await tarTree(tree, tar)
  const { size } = await stat(tar)
  const layout = await writeOciLayout(join(dir, 'oci'), { tar, tag: 'latest', config: { Cmd: ['/bin/bash'], Env: ['PATH=/usr/bin:/bin'] } })
  await rm(tree, { recursive: true })
  await rm(tar)
  return { ...layout, rootTarBytes: size }
}

async function download(): Promise<void> {
  await mkdir(DOWNLOADS, { recursive: true })
  const have = await readdir(DOWNLOADS)
  const missing = PACKAGES.filter((name) => !have.some((file) => file.startsWith(`${name}_`) && file.endsWith('.deb')))
  if (missing.length === 0) return
  await runCommand(['apt-get', 'download', '-qq', '-o', 'APT::Sandbox::User=root', ...missing], { step: step(), cwd: DOWNLOADS })
}
