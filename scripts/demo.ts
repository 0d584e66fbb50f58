/**
 * `make demo`: what dormouse is for, done as a person would do it, on a scratch data directory that goes away afterwards.
 *
 *   node scripts/demo.ts [IMAGE]    IMAGE is pulled from its registry; without it a small one is made of Debian's busybox
 */
import { join } from 'node:path'
import { pollUntil } from '../packages/daemon/src/host/poll-until.ts'
import { anchorMachineOf } from '../test/harness/anchor-machine.ts'
import { makeBusyboxImage, TICKER } from '../test/harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../test/harness/daemon-process.ts'
import { type CommandRun, dormouse } from '../test/harness/dormouse-command.ts'
import { processesNaming } from '../test/harness/processes.ts'
import { rawColdBoot } from '../test/harness/raw-cold-boot.ts'
import { Scratch } from '../test/harness/scratch.ts'

/** What went wrong as a sentence, and what to do about it as another. */
class DemoFailure extends Error {
  readonly advice: string

  constructor(message: string, advice: string) {
    super(message)
    this.advice = advice
  }
}

const DOCTOR = 'See what this host lacks with: bin/dormouse doctor'
const IMAGE = 'demo/busybox:latest'

const PAGE = 'a page from inside'
const WEB_SERVER = ['httpd', '-f', '-p', '80', '-h', '/www']

interface Row {
  readonly step: string
  readonly command: string
  readonly ms: number
}

const rows: Row[] = []
const cancelled = new AbortController()
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => cancelled.abort(new DemoFailure(`Ended by ${signal}`, 'Everything it started was ended and removed.')))
}

try {
  const [reference] = process.argv.slice(2)
  await demonstrate(reference)
  console.log('\ndemo: ok')
} catch (error) {
  const told = cancelled.signal.aborted ? cancelled.signal.reason : error
  console.error(`\ndemo: failed: ${told instanceof Error ? told.message : String(told)}`)
  console.error(told instanceof DemoFailure ? told.advice : DOCTOR)
  process.exitCode = 1
}

async function demonstrate(reference: string | undefined): Promise<void> {
  await using scratch = await Scratch.make()
  const from = performance.now()
  await using daemon = await startDaemon({ dir: join(scratch.path, 'd'), env: settings() })
  keep('the daemon starts', 'dormouse serve', performance.now() - from)
  try {
    if (reference === undefined) await useBusybox(daemon, scratch.path)
    else await useImage(daemon, reference)
  } catch (error) {
    console.error(`\nThe daemon's log ends with:\n${(await daemon.log()).trimEnd().split('\n').slice(-12).join('\n')}`)
    throw error
  }
  await daemon.stop()
  const left = await processesNaming(scratch.path)
  if (left.length > 0)
    throw new DemoFailure(`Left running: ${left.map(({ argv }) => argv[0]).join(', ')}`, 'This is a bug; they were ended.')
}

/** The whole life of an instance, with an image whose insides are known, beside what the same boot costs without dormouse. */
async function useBusybox(daemon: DaemonProcess, dir: string): Promise<void> {
  const { path, digest } = await makeBusyboxImage(join(dir, 'image'), { files: { '/www/index.html': `${PAGE}\n` } })
  const run = commandsOf(daemon)
  await run('imports an image', ['image', 'import', path, IMAGE])
  await run('runs a first instance; the machine boots once and is kept', ['run', '-d', '--name', 'first', IMAGE])
  await run('runs an instance; it wakes from that boot', ['run', '-d', '--name', 'demo', IMAGE])
  expect('Running', (await run('lists instances', ['ps'])).stdout)
  expect('Linux', (await run('runs a command inside', ['exec', 'demo', 'uname', '-a'])).stdout)
  await run('follows its log', ['logs', '-f', 'demo'], { enough: (log) => log.includes('tick 2') })
  await run('asks what it uses', ['stats', '--no-stream', 'demo'])
  expect('busybox', (await run('looks at a path', ['stat', 'demo', '/bin/busybox'])).stdout)
  const before = ticksIn((await run('reads its log', ['logs', 'demo'])).stdout)
  await run('puts it to sleep: its memory goes to disk, its VM goes', ['standby', 'demo'])
  expect('Standby', (await run('lists all instances', ['ps', '-a'])).stdout)
  await run('wakes it', ['restore', 'demo'])
  const goesOn = (log: string): boolean => (ticksIn(log).at(-1) ?? 0) > before.length + 1
  expectTicks(1, (await run('sees it count on from where it was', ['logs', '-f', 'demo'], { enough: goesOn })).stdout)
  await run('forks it while it runs', ['fork', 'demo', 'twin'])
  const { stdout: ofTwin } = await run('sees the fork count on too', ['logs', '-f', 'twin'], { enough: (log) => ticksIn(log).length > 1 })
  expectTicks(before.length + 1, ofTwin)
  expect('twin', (await run('asks the fork for its name', ['exec', 'twin', 'hostname'])).stdout)
  await run('runs a web server and publishes its port', ['run', '-d', '--name', 'web', '-p', '127.0.0.1::80', IMAGE, ...WEB_SERVER])
  const { stdout: ofWeb } = await run('asks which port that is', ['inspect', 'web'])
  expect(PAGE, await fetchPage(portIn(ofWeb)))
  await run('stops it', ['stop', 'demo'])
  expect('bye', (await run('reads its last words', ['logs', 'demo'])).stdout)
  await run('starts it again', ['start', 'demo'])
  await run('waits until it runs', ['wait', '--state', 'Running', 'demo'])
  await run('deletes them', ['rm', '-f', 'demo', 'twin', 'web', 'first'])
  await using raw = await rawColdBoot({
    dir: join(dir, 'raw'),
    rootfs: daemon.paths.imageRootfs(digest),
    argv: TICKER,
    ...(await anchorMachineOf(daemon)),
    signal: cancelled.signal,
  })
  keep('for comparison: the same boot by plain QEMU', `qemu-system-x86_64 -M ${raw.board} -accel ${raw.acceleration} …`, raw.startedMs)
  printTable()
  const woken = rows.find(({ command }) => command.includes('--name demo'))
  if (woken !== undefined)
    console.log(
      `\nAn instance runs ${(raw.startedMs / woken.ms).toFixed(1)} times sooner than a cold boot, the command line's own start included.`,
    )
}

/** Any image: what it does is its own affair, so it may also end at once. */
async function useImage(daemon: DaemonProcess, reference: string): Promise<void> {
  const run = commandsOf(daemon)
  await run('pulls the image', ['image', 'pull', reference], { timeoutMs: 3_600_000 })
  await run('runs an instance', ['run', '-d', '--name', 'demo', reference])
  await run('shows it', ['ps', '-a'])
  const { stdout } = await run('reads its log', ['logs', 'demo'])
  await run('deletes it', ['rm', '-f', 'demo'])
  printTable()
  console.log(`\nIts log:\n${stdout.trimEnd().split('\n').slice(-20).join('\n')}`)
}

/** The caller's own settings: a registry that wants a login, is asked over plain HTTP, or has a certificate of one's own. */
function settings(): Record<string, string> {
  const isSetting = (name: string): boolean => name.startsWith('DORMOUSE_') || name === 'NODE_EXTRA_CA_CERTS'
  return Object.fromEntries(Object.entries(process.env).flatMap(([name, value]) => (isSetting(name) && value ? [[name, value]] : [])))
}

type Run = (
  step: string,
  args: readonly string[],
  options?: { enough?: (stdout: string) => boolean; timeoutMs?: number },
) => Promise<CommandRun>

function commandsOf({ socket }: DaemonProcess): Run {
  return async (step, args, options) => {
    const command = `dormouse ${args.map((word) => (word.startsWith('/tmp') ? '…/oci' : word)).join(' ')}`
    const result = await dormouse(args, { socket, signal: cancelled.signal, ...options })
    keep(step, command, result.ms)
    if (options?.enough?.(result.stdout)) return result
    if (result.code !== 0 || options?.enough !== undefined) throw commandFailure(command, result)
    return result
  }
}

/** What the command itself advises goes first: a registry that refuses is nothing that the host lacks. */
function commandFailure(command: string, { code, stdout, stderr }: CommandRun): DemoFailure {
  const said = (stderr || stdout).trim()
  const hint = /^Hint: /m.exec(said)
  const message = hint === null ? said : said.slice(0, hint.index).trim()
  const advice = hint === null ? DOCTOR : said.slice(hint.index + hint[0].length).trim()
  return new DemoFailure(`'${command}' ended with ${code}: ${message}`, advice)
}

function expect(word: string, output: string): void {
  if (!output.includes(word))
    throw new DemoFailure(`Expected to read "${word}", but got:\n${output}`, 'This is a bug: run it again and report what it says.')
}

function portIn(inspected: string): number {
  const port = /"host_port": (\d+)/.exec(inspected)?.[1]
  if (port === undefined) throw new DemoFailure(`No published port is in:\n${inspected}`, 'This is a bug: report what it says.')
  return Number(port)
}

/** As a browser on this host would, once the server listens: what is published is open from the start. */
async function fetchPage(port: number): Promise<string> {
  const from = performance.now()
  const url = `http://127.0.0.1:${port}/`
  const signal = AbortSignal.any([cancelled.signal, AbortSignal.timeout(20_000)])
  let page = ''
  const isThere = async (): Promise<boolean> => {
    const answer = await fetch(url, { signal: AbortSignal.any([signal, AbortSignal.timeout(5000)]) }).catch(() => undefined)
    page = (await answer?.text().catch(() => '')) ?? ''
    return answer?.ok === true
  }
  await pollUntil('the web server to answer', isThere, { signal })
  keep('fetches a page through it', `curl http://127.0.0.1:${port}/`, performance.now() - from)
  return page
}

function ticksIn(log: string): number[] {
  return [...log.matchAll(/^tick (\d+)$/gm)].map(([, tick]) => Number(tick))
}

/** One after the other, from no earlier than `first`: a workload that was started anew would count from 1 again. */
function expectTicks(first: number, log: string): void {
  const ticks = ticksIn(log)
  const [begins = 0] = ticks
  if (begins < first || ticks.some((tick, at) => tick !== begins + at)) {
    throw new DemoFailure(
      `Expected it to count on from ${first}, but it counted: ${ticks.join(' ')}`,
      'This is a bug: report what it says.',
    )
  }
}

function keep(step: string, command: string, ms: number): void {
  rows.push({ step, command, ms })
  if (process.stderr.isTTY) console.error(`  ${step} (${ms.toFixed(0)} ms)`)
}

function printTable(): void {
  const width = (column: 'step' | 'command'): number => Math.max(...rows.map((row) => row[column].length))
  console.log()
  for (const { step, command, ms } of rows) {
    console.log(`${step.padEnd(width('step'))}  ${command.padEnd(width('command'))}  ${ms.toFixed(0).padStart(7)} ms`)
  }
}
