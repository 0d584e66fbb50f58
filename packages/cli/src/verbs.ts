/**
 * Every verb, and where it lives. Only the verb that is asked for is loaded: that is most of what keeps the start of the CLI short.
 */
import type { Command } from 'commander'

/** What a command file exports: its arguments, options and action, put onto an empty command of the verb's name. */
export interface VerbModule {
  define(command: Command): void
}

export interface Verb {
  readonly name: string
  readonly summary: string
  readonly alias?: string
  readonly load: () => Promise<VerbModule>
  /** Failures of the CLI itself end with 125, so that they are never taken for the command's own code. */
  readonly ownCodes?: true
  readonly group?: string
}

const RUNNING = 'Instances:'
const INSIDE = 'Inside an instance:'
const HOST = 'Images, volumes and the host:'

export const verbs: readonly Verb[] = [
  {
    name: 'run',
    summary: 'Make an instance of an image and run it',
    group: RUNNING,
    ownCodes: true,
    load: () => import('./commands/run.ts'),
  },
  { name: 'ps', alias: 'ls', summary: 'List instances', group: RUNNING, load: () => import('./commands/ps.ts') },
  { name: 'inspect', summary: 'Show all that is known of instances', group: RUNNING, load: () => import('./commands/inspect.ts') },
  { name: 'start', summary: 'Start stopped instances', group: RUNNING, load: () => import('./commands/start.ts') },
  { name: 'stop', summary: 'Stop instances', group: RUNNING, load: () => import('./commands/stop.ts') },
  { name: 'restart', summary: 'Stop instances and start them again', group: RUNNING, load: () => import('./commands/restart.ts') },
  { name: 'standby', summary: 'Put instances to sleep with their memory', group: RUNNING, load: () => import('./commands/standby.ts') },
  { name: 'restore', summary: 'Wake instances that sleep', group: RUNNING, load: () => import('./commands/restore.ts') },
  {
    name: 'fork',
    summary: 'Make a second instance that goes on from where one is',
    group: RUNNING,
    load: () => import('./commands/fork.ts'),
  },
  { name: 'rm', summary: 'Delete instances with their disks', group: RUNNING, load: () => import('./commands/rm.ts') },
  { name: 'wait', summary: 'Wait until instances are in a state', group: RUNNING, load: () => import('./commands/wait.ts') },
  { name: 'update', summary: 'Change an instance', group: RUNNING, load: () => import('./commands/update.ts') },
  { name: 'stats', summary: 'Show what instances use, live', group: RUNNING, load: () => import('./commands/stats.ts') },
  { name: 'logs', summary: 'Read the log of an instance, and follow it', group: INSIDE, load: () => import('./commands/logs.ts') },
  { name: 'exec', summary: 'Run a command inside an instance', group: INSIDE, ownCodes: true, load: () => import('./commands/exec.ts') },
  { name: 'cp', summary: 'Copy files into and out of an instance', group: INSIDE, load: () => import('./commands/cp.ts') },
  { name: 'stat', summary: 'Look at a path inside an instance', group: INSIDE, load: () => import('./commands/stat.ts') },
  {
    name: 'snapshot',
    summary: 'Take, list and delete snapshots, go back to one, fork one',
    group: RUNNING,
    load: () => import('./commands/snapshot.ts'),
  },
  {
    name: 'schedule',
    summary: 'Have snapshots taken by themselves, and old ones deleted',
    group: RUNNING,
    load: () => import('./commands/schedule.ts'),
  },
  {
    name: 'auto-standby',
    summary: 'Have instances sleep once no one is connected to them',
    group: RUNNING,
    load: () => import('./commands/auto-standby.ts'),
  },
  { name: 'image', summary: 'Import, pull, push, list, tag and delete images', group: HOST, load: () => import('./commands/image.ts') },
  {
    name: 'volume',
    summary: 'Make, fill, list, attach, grow and delete volumes',
    group: HOST,
    load: () => import('./commands/volume.ts'),
  },
  {
    name: 'device',
    summary: 'Register devices of the host for instances',
    group: HOST,
    load: () => import('./commands/device.ts'),
  },
  { name: 'df', summary: 'Show what takes space and what is given away', group: HOST, load: () => import('./commands/df.ts') },
  { name: 'prune', summary: 'Give up what can be missed on the disk', group: HOST, load: () => import('./commands/prune.ts') },
  { name: 'token', summary: 'Make, list and revoke tokens for the API over TCP', group: HOST, load: () => import('./commands/token.ts') },
  { name: 'audit', summary: 'List who changed what, and who was refused', group: HOST, load: () => import('./commands/audit.ts') },
  { name: 'serve', summary: 'Run the daemon', group: HOST, load: () => import('./commands/serve.ts') },
  {
    name: 'doctor',
    summary: 'Say what the host has, what is missing and how to mend it',
    group: HOST,
    load: () => import('./commands/doctor.ts'),
  },
  { name: 'completion', summary: 'Print a completion script for a shell', group: HOST, load: () => import('./commands/completion.ts') },
  { name: 'version', summary: 'Show the versions of CLI and daemon', group: HOST, load: () => import('./commands/version.ts') },
]

export const imageVerbs: readonly Verb[] = [
  { name: 'pull', summary: 'Pull an image from its registry', load: () => import('./commands/image/pull.ts') },
  { name: 'push', summary: 'Push an image to a registry', load: () => import('./commands/image/push.ts') },
  { name: 'import', summary: 'Import an OCI layout, an oci-archive or a docker-archive', load: () => import('./commands/image/import.ts') },
  { name: 'ls', alias: 'list', summary: 'List images', load: () => import('./commands/image/ls.ts') },
  { name: 'inspect', summary: 'Show all that is known of images', load: () => import('./commands/image/inspect.ts') },
  { name: 'tag', summary: 'Give an image a second name', load: () => import('./commands/image/tag.ts') },
  { name: 'rm', summary: 'Delete images', load: () => import('./commands/image/rm.ts') },
  { name: 'prune', summary: 'Delete every image that no instance stands on', load: () => import('./commands/image/prune.ts') },
]

export const volumeVerbs: readonly Verb[] = [
  { name: 'create', summary: 'Make an empty volume', load: () => import('./commands/volume/create.ts') },
  { name: 'import', summary: 'Make a volume with what a tar or a directory holds', load: () => import('./commands/volume/import.ts') },
  { name: 'ls', alias: 'list', summary: 'List volumes, with who has them', load: () => import('./commands/volume/ls.ts') },
  { name: 'inspect', summary: 'Show all that is known of volumes', load: () => import('./commands/volume/inspect.ts') },
  { name: 'attach', summary: 'Attach a volume to an instance', load: () => import('./commands/volume/attach.ts') },
  { name: 'detach', summary: 'Detach a volume from an instance', load: () => import('./commands/volume/detach.ts') },
  { name: 'grow', summary: 'Make a volume larger', load: () => import('./commands/volume/grow.ts') },
  { name: 'rm', summary: 'Delete volumes that no instance has', load: () => import('./commands/volume/rm.ts') },
]

export const deviceVerbs: readonly Verb[] = [
  { name: 'available', summary: 'List devices of the host that could be registered', load: () => import('./commands/device/available.ts') },
  { name: 'create', summary: 'Register a device, for an instance to have', load: () => import('./commands/device/create.ts') },
  { name: 'ls', alias: 'list', summary: 'List registered devices, with who has them', load: () => import('./commands/device/ls.ts') },
  { name: 'inspect', summary: 'Show all that is known of devices', load: () => import('./commands/device/inspect.ts') },
  { name: 'rm', summary: 'Unregister devices that no instance has', load: () => import('./commands/device/rm.ts') },
]

export const snapshotVerbs: readonly Verb[] = [
  { name: 'create', summary: 'Take a snapshot of an instance', load: () => import('./commands/snapshot/create.ts') },
  { name: 'ls', alias: 'list', summary: 'List snapshots', load: () => import('./commands/snapshot/ls.ts') },
  { name: 'rm', summary: 'Delete snapshots', load: () => import('./commands/snapshot/rm.ts') },
  { name: 'restore', summary: 'Take an instance back to a snapshot', load: () => import('./commands/snapshot/restore.ts') },
  { name: 'fork', summary: 'Make a new instance of a snapshot', load: () => import('./commands/snapshot/fork.ts') },
]

export const scheduleVerbs: readonly Verb[] = [
  { name: 'set', summary: 'Set when snapshots are taken, and which are kept', load: () => import('./commands/schedule/set.ts') },
  { name: 'show', summary: 'Show a schedule, and how its last run went', load: () => import('./commands/schedule/show.ts') },
  { name: 'rm', summary: 'Remove schedules; what they made stays', load: () => import('./commands/schedule/rm.ts') },
]

export const tokenVerbs: readonly Verb[] = [
  { name: 'create', summary: 'Make a token', load: () => import('./commands/token/create.ts') },
  {
    name: 'ls',
    alias: 'list',
    summary: 'List the tokens that were made here and have not expired',
    load: () => import('./commands/token/ls.ts'),
  },
  { name: 'revoke', summary: 'Revoke tokens: from then on they are refused', load: () => import('./commands/token/revoke.ts') },
]

export const autoStandbyVerbs: readonly Verb[] = [
  { name: 'set', summary: 'Set after how long without a connection it sleeps', load: () => import('./commands/auto-standby/set.ts') },
  { name: 'show', summary: 'Show why it sleeps, or does not', load: () => import('./commands/auto-standby/show.ts') },
  { name: 'hold', summary: 'Keep instances awake for another idle time', load: () => import('./commands/auto-standby/hold.ts') },
  { name: 'off', summary: 'Have instances sleep by themselves no more', load: () => import('./commands/auto-standby/off.ts') },
]

/** Verbs that have verbs of their own. */
export const verbGroups: Readonly<Record<string, readonly Verb[]>> = {
  image: imageVerbs,
  snapshot: snapshotVerbs,
  schedule: scheduleVerbs,
  'auto-standby': autoStandbyVerbs,
  volume: volumeVerbs,
  token: tokenVerbs,
  device: deviceVerbs,
}

/** Puts `list` under `parent` by name and summary; a verb's own file is loaded when it is the one. */
export function addVerbs(parent: Command, list: readonly Verb[], parents: WeakMap<Command, Verb>): void {
  for (const verb of list) {
    const command = parent.command(verb.name).description(verb.summary)
    if (verb.alias !== undefined) command.alias(verb.alias)
    if (verb.group !== undefined) command.helpGroup(verb.group)
    parents.set(command, verb)
  }
  parent.hook('preSubcommand', async (_, command) => {
    const verb = parents.get(command)
    if (verb !== undefined) (await verb.load()).define(command)
  })
}
