/** One verb over several names: each is tried, each failure is said, and the first one gives the exit code. */
import { type Told, tell } from './failure.ts'
import { printFailure } from './output/print.ts'

export async function forEachName(
  names: readonly string[],
  options: { json?: boolean },
  work: (name: string) => Promise<void>,
): Promise<void> {
  let first: Told | undefined
  for (const name of names) {
    try {
      await work(name)
    } catch (error) {
      const told = tell(error)
      printFailure(told, { json: options.json === true })
      first ??= told
    }
  }
  if (first !== undefined) process.exitCode = first.exitCode
}
