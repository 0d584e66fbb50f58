/** The VMM's program: where it is, and whether it is one that we know. It is the project's own release; none is brought along. */
import { constants } from 'node:fs'
import { access, stat } from 'node:fs/promises'
import path from 'node:path'
import { AppError } from '@dormouse/api/errors.ts'
import { runCommand } from '../host/run-command.ts'
import type { Step } from '../lib/step.ts'

export interface KnownVmm {
  /** As it calls itself. */
  readonly title: string
  /** Looked for in PATH when no file is named. */
  readonly program: string
  /** The setting that names a file. */
  readonly setting: string
  /** Where its releases are. */
  readonly home: string
  /** Major versions, or major and minor where those differ in more than fixes: `53`, `1.12`. */
  readonly versions: readonly string[]
}

export interface VmmBinary {
  readonly file: string
  readonly version: string
  /** Of the file that said so. */
  readonly stamp: string
}

export interface WhereToLook {
  /** The file that the setting names. */
  readonly file: string | undefined
  /** Directories, parted as in PATH. */
  readonly searchPath: string
}

/** Throws `dependency_missing` with a sentence when there is none, or none that is known; the hint says where to get one. */
export async function findVmmBinary(vmm: KnownVmm, where: WhereToLook, step: Step): Promise<VmmBinary> {
  const hint = `Get one of ${vmm.versions.join(', ')} from ${vmm.home}, and put it into PATH or name it by ${vmm.setting}`
  // As it is from here: a shim starts it from elsewhere.
  const file = where.file === undefined ? await inPath(vmm.program, where.searchPath) : path.resolve(where.file)
  if (file === undefined)
    throw new AppError('dependency_missing', `${vmm.title} is not installed: there is no ${vmm.program} in PATH`, { hint })
  if (!(await isProgram(file)))
    throw new AppError('dependency_missing', `${vmm.title} is not at ${file} (${vmm.setting}), or cannot be run`, { hint })
  // Before it speaks: one that is exchanged meanwhile is asked again.
  const stamp = await stampOf(file)
  const version = versionIn((await ask(vmm, file, hint, step)).stdout)
  if (version === undefined) throw new AppError('dependency_missing', `${file} does not say which version of ${vmm.title} it is`, { hint })
  const isRelease = /^[\d.]+$/.test(version)
  if (isRelease && vmm.versions.some((known) => version === known || version.startsWith(`${known}.`))) return { file, version, stamp }
  const what = isRelease ? 'a version that is supported' : 'a release'
  throw new AppError('dependency_missing', `${vmm.title} ${version} at ${file} is not ${what}`, { hint })
}

/** Is what is there the file that said its version? */
export const isStill = async ({ file, stamp }: VmmBinary): Promise<boolean> => (await stampOf(file)) === stamp

/** Another one whenever another file is put there, or something is written to it. */
async function stampOf(file: string): Promise<string> {
  try {
    const { dev, ino, size, mtimeNs } = await stat(file, { bigint: true })
    return [dev, ino, size, mtimeNs].join(':')
  } catch {
    return 'none'
  }
}

async function ask({ title }: KnownVmm, file: string, hint: string, step: Step): Promise<{ readonly stdout: string }> {
  try {
    return await runCommand([file, '--version'], { step })
  } catch (cause) {
    throw new AppError('dependency_missing', `${title} at ${file} does not start`, { hint, cause })
  }
}

/** `cloud-hypervisor v53.0.0`, `Firecracker v1.12.0`; with what follows in those that are no releases: `v53.0-12-gabcdef`. */
export const versionIn = (text: string): string | undefined => /\bv(\d+\.\d+\S*)/.exec(text)?.[1]

async function inPath(program: string, searchPath: string): Promise<string | undefined> {
  for (const dir of searchPath.split(path.delimiter)) {
    const file = path.join(dir, program)
    if (path.isAbsolute(dir) && (await isProgram(file))) return file
  }
  return undefined
}

async function isProgram(file: string): Promise<boolean> {
  try {
    await access(file, constants.X_OK)
    return (await stat(file)).isFile()
  } catch {
    return false
  }
}
