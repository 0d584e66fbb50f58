import { runCommand } from '../../packages/daemon/src/host/run-command.ts'

/** A program of this host and the libraries that it is linked with, for an image: where each lies there, and where here. */
export async function programClosure(program: string, as = program): Promise<Record<string, string>> {
  const { stdout } = await runCommand(['ldd', program], { step: { signal: AbortSignal.timeout(10_000) } })
  const libraries = [...stdout.matchAll(/(\/\S+) \(0x/g)].map(([, path = '']) => path)
  return { ...Object.fromEntries(libraries.map((path) => [path, path])), [as]: program }
}
