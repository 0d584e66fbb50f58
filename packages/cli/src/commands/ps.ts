import type { Instance } from '@dormouse/api/instances.ts'
import type { Command } from 'commander'
import { connect, type HostOption } from '../daemon.ts'
import { ago, humanDuration, shortId } from '../output/format.ts'
import { print, printJson, printTable, remark } from '../output/print.ts'
import { paintState, styleOf } from '../output/style.ts'
import type { Column } from '../output/table.ts'
import { formatPort } from '../parse/ports.ts'
import { instanceStates } from '../parse/states.ts'
import { collect, parseChoice, parseTags } from '../parse/values.ts'

interface Options extends HostOption {
  readonly all?: true
  readonly state?: string
  readonly tag?: string[]
  readonly quiet?: true
  readonly names?: true
  readonly trunc: boolean
  readonly json?: true
}

export function define(command: Command): void {
  command
    .option('-a, --all', 'stopped instances too')
    .option('-s, --state <state>', 'only those in this state')
    .option('-t, --tag <key=value>', 'only those with this tag; may be repeated', collect)
    .option('-q, --quiet', 'ids alone')
    .option('--names', 'names alone')
    .option('--no-trunc', 'whole ids')
    .option('--json', 'for programs')
    .action(() => list(command.optsWithGlobals()))
}

async function list(options: Options): Promise<void> {
  const state = options.state === undefined ? undefined : parseChoice(options.state, instanceStates, 'state')
  const tags = parseTags(options.tag ?? [])
  const found = await connect(options).call('listInstances', {
    query: { ...(state !== undefined && { state }), ...(tags !== undefined && { tags }) },
  })
  const shown = options.all || state !== undefined ? found : found.filter((instance) => instance.state !== 'Stopped')
  if (options.json) return printJson(shown)
  if (options.quiet || options.names) {
    for (const instance of shown) print(options.names ? instance.name : instance.id)
    return
  }
  printTable(columns(options, Date.now()), shown)
  const hidden = found.length - shown.length
  if (hidden > 0) remark(`${hidden} stopped ${hidden === 1 ? 'instance is' : 'instances are'} not shown: dormouse ps -a`)
}

function columns(options: Options, now: number): Column<Instance>[] {
  const style = styleOf(process.stdout)
  return [
    { title: 'ID', value: ({ id }) => (options.trunc ? shortId(id) : id) },
    { title: 'NAME', value: ({ name }) => name, shrinksTo: 12 },
    { title: 'IMAGE', value: ({ image }) => image, shrinksTo: 12 },
    { title: 'STATE', value: ({ state }) => state, paint: (text, { state }) => paintState(style, state) + text.slice(state.length) },
    { title: 'STATUS', value: (instance) => statusText(instance, now), shrinksTo: 12 },
    { title: 'CREATED', value: ({ created_at }) => ago(created_at, now) },
    { title: 'PORTS', value: ({ network }) => (network?.ports ?? []).map(formatPort).join(', '), shrinksTo: 8 },
  ]
}

/** What there is to say beside the state: for how long, or how it ended. */
export function statusText(instance: Instance, now: number): string {
  if (instance.operation !== undefined) return `${instance.operation} under way`
  const since = (time: string | null | undefined): string => (typeof time === 'string' ? humanDuration(now - Date.parse(time)) : '')
  switch (instance.state) {
    case 'Stopped': {
      const code = typeof instance.exit_code === 'number' ? `exit ${instance.exit_code}` : ''
      const when = instance.stopped_at ? ago(instance.stopped_at, now) : ''
      return [code, when, nextStart(instance, now)].filter((part) => part !== '').join(', ')
    }
    case 'Unknown':
      return instance.state_error ?? ''
    case 'Standby':
      return since(instance.stopped_at)
    default:
      return [since(instance.started_at), healthText(instance)].filter((part) => part !== '').join(', ')
  }
}

function nextStart({ restart_status: status }: Instance, now: number): string {
  if (status?.blocked_reason === 'max_attempts_exceeded') return 'no more restarts'
  if (typeof status?.next_attempt_at !== 'string') return ''
  return `starts in ${humanDuration(Math.max(0, Date.parse(status.next_attempt_at) - now))}`
}

function healthText({ health_status: health }: Instance): string {
  return health === undefined || health.status === 'disabled' || health.status === 'unknown' ? '' : health.status
}
