import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { forEachName } from '../each.ts'
import { EXIT, Failure } from '../failure.ts'
import { print, printJsonLine } from '../output/print.ts'

export function define(command: Command): void {
  command
    .argument('<name...>', 'name, id or the beginning of an id')
    .option('-f, --force', 'those that run too, killed at once; a name that no instance has is no failure')
    .option('--json', 'for programs: one object a line')
    .action((names: string[]) => remove(names, command.optsWithGlobals()))
}

async function remove(names: readonly string[], options: HostOption & { force?: true; json?: true }): Promise<void> {
  const daemon = connect(options)
  await forEachName(names, options, async (name) => {
    const instance = await daemon.call('getInstance', { params: { id: name } }).catch((error: unknown) => {
      if (options.force && isNotFound(error)) return undefined
      throw error
    })
    if (instance === undefined) return
    if (!options.force && instance.state !== 'Stopped') {
      throw new Failure(`${instance.name} is ${instance.state}`, {
        exitCode: EXIT.conflict,
        code: 'invalid_state',
        hint: `Stop it first: dormouse stop ${instance.name}; or delete it as it is: dormouse rm -f ${instance.name}`,
      })
    }
    // By id: the name may be someone else's by now.
    await daemon.call('deleteInstance', { params: { id: instance.id }, query: { graceful_shutdown: !options.force } })
    if (options.json) printJsonLine({ id: instance.id, name: instance.name })
    else print(name)
  })
}

const isNotFound = (error: unknown): boolean => error instanceof Error && 'code' in error && error.code === 'not_found'
