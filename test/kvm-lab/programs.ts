/**
 * Programs that no Debian package brings, and that drivers are tried with where they are at hand: the VMMs of other projects. They are
 * the files that `LAB_PROGRAMS` names, with colons between, and those of these names in `PATH`. In the lab each is found by its file's name.
 */
import { access, constants } from 'node:fs/promises'
import { basename, join, resolve } from 'node:path'

const SOUGHT = ['cloud-hypervisor', 'firecracker'] as const

/** The files, by the name that they have in the lab. Throws for one that is named and cannot be run. */
export async function findPrograms(env: NodeJS.ProcessEnv = process.env): Promise<ReadonlyMap<string, string>> {
  const found = new Map<string, string>()
  for (const file of listed(env.LAB_PROGRAMS)) {
    if (!(await isProgram(file))) throw new Error(`LAB_PROGRAMS names ${file}, which is no program that can be run`)
    found.set(basename(file), resolve(file))
  }
  for (const name of SOUGHT) {
    for (const dir of listed(env.PATH)) {
      if (!found.has(name) && (await isProgram(join(dir, name)))) found.set(name, resolve(dir, name))
    }
  }
  return found
}

const listed = (list = ''): string[] => list.split(':').filter((entry) => entry !== '')

const isProgram = (file: string): Promise<boolean> =>
  access(file, constants.X_OK).then(
    () => true,
    () => false,
  )
