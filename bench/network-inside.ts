/**
 * What is measured of the bridge, in a network namespace that measures/network.ts makes around it. Prints figures as JSON.
 *
 *   node bench/network-inside.ts DIR RUNS CONFIG     CONFIG: the installed daemon's argv and environment, as JSON
 */
import { execFileSync } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { silentLogger } from '../packages/daemon/src/log.ts'
import { anchorMachineOf } from '../test/harness/anchor-machine.ts'
import { HOST, ip, makeLab, OUTSIDE } from '../test/harness/bridged-lab.ts'
import { makeBusyboxImage } from '../test/harness/busybox-image.ts'
import { type DaemonProcess, startDaemon } from '../test/harness/daemon-process.ts'
import { execOverApi } from '../test/harness/exec-over-api.ts'
import { importImage } from '../test/harness/import-image.ts'
import { rawColdBoot } from '../test/harness/raw-cold-boot.ts'

export interface NetworkFigures {
  /** Milliseconds of the step "attach". */
  readonly setup: readonly number[]
  readonly setupByHand: readonly number[]
  /** Milliseconds for 32 MiB from outside to a guest, and the other way. */
  readonly download: readonly number[]
  readonly bareDownload: readonly number[]
  readonly upload: readonly number[]
  readonly bareUpload: readonly number[]
}

const IMAGE = 'bench/bridged:latest'
const IDLE = ['/bin/sleep', '1000000']
const SIZE = { size: '256MB', vcpus: 1, overlay_size: '64MB' }

const [dir = '', runs = '3', config = '{}'] = process.argv.slice(2)
const { argv, env } = JSON.parse(config) as { argv: [string, ...string[]]; env: Record<string, string> }
await using _lab = await makeLab()
await using daemon = await startDaemon({
  dir: join(dir, 'd'),
  argv,
  env: { ...env, DORMOUSE_NETWORK: 'bridged', DORMOUSE_LOG_LEVEL: 'debug' },
})
const { path, digest } = await makeBusyboxImage(join(dir, 'image'), { cmd: IDLE })
await importImage(daemon, path, IMAGE)
await daemon.client.post('/instances?wait=running', { name: 'a', image: IMAGE, ...SIZE })

// Plain QEMU on a bridge of its own, as it is set up by hand.
ip('link', 'add', 'bare0', 'type', 'bridge')
ip('addr', 'add', '10.77.0.1/24', 'dev', 'bare0')
ip('link', 'set', 'bare0', 'up')
const masquerade =
  'table ip bare { chain c { type nat hook postrouting priority 100; ip saddr 10.77.0.0/24 oifname != "bare0" masquerade; }; }'
execFileSync('nft', ['-f', '-'], { input: masquerade })
byHand('bare-tap')
const bare = await rawColdBoot({
  ...{
    dir: join(dir, 'bare'),
    rootfs: daemon.paths.imageRootfs(digest),
    argv: IDLE,
    vcpus: 1,
    memoryMib: 256,
    ...(await anchorMachineOf(daemon)),
  },
  tap: {
    name: 'bare-tap',
    network: { mac: '02:64:6d:00:00:07', ipv4: { address: '10.77.0.2', prefix: 24, gateway: '10.77.0.1' }, dns: [], mtu: 1500 },
  },
})
const figures = { setup: [], setupByHand: [], download: [], bareDownload: [], upload: [], bareUpload: [] } as Record<
  keyof NetworkFigures,
  number[]
>
// What nc reads while it waits for the other side to hang up: never anything, nor an end.
const fifo = { command: ['/bin/mkfifo', '/tmp/never'] }
await execOverApi(daemon.socket, 'a', fifo)
await inBare(fifo.command)
for (let run = 0; run < Number(runs); run += 1) {
  await daemon.client.post('/instances', { name: 'setup', image: IMAGE, ...SIZE })
  await daemon.client.delete('/instances/setup')
  const from = performance.now()
  byHand('by-hand')
  figures.setupByHand.push(performance.now() - from)
  ip('link', 'delete', 'by-hand')
  for (const [of, bareOf, script] of [
    ['download', 'bareDownload', `nc ${OUTSIDE.ipv4} 9005 <>/tmp/never >/dev/null`],
    ['upload', 'bareUpload', `nc ${OUTSIDE.ipv4} 9004 </dev/zero >/dev/null`],
  ] as const) {
    figures[of].push(await timed(async () => void (await execOverApi(daemon.socket, 'a', { command: ['/bin/sh', '-c', script] }))))
    figures[bareOf].push(await timed(() => inBare(['/bin/sh', '-c', script])))
  }
}
figures.setup.push(...(await attachesOf(daemon)).slice(1))
await bare[Symbol.asyncDispose]()
await daemon.client.delete('/instances/a')
console.log(JSON.stringify(figures))

/** As a start script does it, one call after the other. */
function byHand(tap: string): void {
  ip('tuntap', 'add', 'dev', tap, 'mode', 'tap', 'vnet_hdr')
  ip('link', 'set', tap, 'master', 'bare0')
  ip('link', 'set', tap, 'type', 'bridge_slave', 'isolated', 'on')
  ip('link', 'set', tap, 'up')
  execFileSync('nft', ['add', 'rule', 'ip', 'bare', 'c', 'ip', 'saddr', HOST.ipv4, 'accept'])
}

async function inBare(command: string[]): Promise<void> {
  const exec = await bare.guest.exec({ command }, { signal: AbortSignal.timeout(120_000), log: silentLogger })
  exec.stdin.end()
  exec.stdout.resume()
  exec.stderr.resume()
  await exec.exit
}

async function timed(work: () => Promise<void>): Promise<number> {
  const from = performance.now()
  await work()
  return performance.now() - from
}

/** By the log's steps of each create. */
async function attachesOf({ dir: place }: DaemonProcess): Promise<number[]> {
  const log = await readFile(join(place, 'daemon.log'), 'utf8')
  return log.split('\n').flatMap((line) => {
    if (!line.includes('"operation":"create"') || !line.includes('operation done')) return []
    const step = (JSON.parse(line) as { steps: string[] }).steps.find((it) => it.startsWith('attach '))
    return step === undefined ? [] : [Number(step.split(' ')[1])]
  })
}
