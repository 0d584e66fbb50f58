import type { InstanceState } from '@dormouse/api/instance-states.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { forEachName } from '../each.ts'
import { EXIT, Failure } from '../failure.ts'
import { waitForState } from '../instance-life.ts'
import { print, printJsonLine } from '../output/print.ts'
import { instanceStates } from '../parse/states.ts'
import { parseChoice, parseDurationOption } from '../parse/values.ts'

interface Options extends HostOption {
  readonly state: string
  readonly timeout?: string
  readonly json?: true
}

export function define(command: Command): void {
  command
    .argument('<name...>', 'name, id or the beginning of an id')
    .option('-s, --state <state>', 'what to wait for', 'Stopped')
    .option('-t, --timeout <duration>', 'give up after so long, such as 5m; waits forever without it')
    .option('--json', 'for programs: one object a line')
    .addHelpText(
      'after',
      `\nFor Stopped it prints the workload's exit code, else the state. Ends with ${EXIT.timedOut} when the time is over, and with ${EXIT.failed} when the instance came to rest in another state.`,
    )
    .action((names: string[]) => wait(names, command.optsWithGlobals()))
}

async function wait(names: readonly string[], options: Options): Promise<void> {
  const state: InstanceState = parseChoice(options.state, instanceStates, 'state')
  const timeoutMs = options.timeout === undefined ? undefined : parseDurationOption(options.timeout)
  const daemon = connect(options)
  await forEachName(names, options, async (name) => {
    const { id } = await daemon.call('getInstance', { params: { id: name } })
    const answer = await waitForState(daemon, id, state, timeoutMs === undefined ? {} : { timeoutMs })
    if (options.json) printJsonLine({ name, ...answer })
    if (answer.state !== state) throw missed(name, state, answer)
    if (options.json) return
    const code = state === 'Stopped' ? (await daemon.call('getInstance', { params: { id } })).exit_code : undefined
    print(typeof code === 'number' ? String(code) : answer.state)
  })
}

function missed(name: string, state: InstanceState, answer: { state: InstanceState; timed_out: boolean; reason?: string }): Failure {
  const now = `it is ${answer.state}${answer.reason === undefined ? '' : `: ${answer.reason}`}`
  if (answer.timed_out) return new Failure(`${name} was not ${state} in time; ${now}`, { exitCode: EXIT.timedOut, code: 'timed_out' })
  return new Failure(`${name} will not become ${state} by itself; ${now}`, { hint: `See how it ended: dormouse inspect ${name}` })
}
