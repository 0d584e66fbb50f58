/**
 * A host and a neighbour, for tests that run in a network of their own (own-network.ts):
 *
 *   this process: the host, 198.51.100.1, 2001:db8:1::1 ── veth ── 198.51.100.2, 2001:db8:1::2: outside
 */
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { Scratch } from './scratch.ts'

// Its name lies in a directory that all namespaces of mounts may share.
const OUT = `dm-outside-${process.pid}`
export const HOST = { ipv4: '198.51.100.1', ipv6: '2001:db8:1::1' } as const
export const OUTSIDE = { ipv4: '198.51.100.2', ipv6: '2001:db8:1::2', answer: '192.0.2.77' } as const

export interface Lab extends AsyncDisposable {
  readonly dir: string
  /** What a command outside prints. */
  outside(...argv: readonly [string, ...string[]]): Promise<string>
  /** A program outside, once it has said its first line; it ends with the lab. */
  serve(...argv: readonly [string, ...string[]]): Promise<void>
  /** What has arrived outside so far. */
  counts(): Promise<{ readonly takenBytes: number; readonly calls: number }>
}

export const ip = (...argv: readonly string[]): string => execFileSync('ip', argv, { encoding: 'utf8' })
export const nft = (...argv: readonly string[]): string => execFileSync('nft', argv, { encoding: 'utf8' })

export async function makeLab(): Promise<Lab> {
  const scratch = await Scratch.make()
  ip('netns', 'add', OUT)
  ip('link', 'add', 'up0', 'type', 'veth', 'peer', 'name', 'out0', 'netns', OUT)
  const outside = (...argv: readonly string[]): string => ip('-n', OUT, ...argv)
  for (const [run, device, addresses] of [
    [ip, 'up0', HOST],
    [outside, 'out0', OUTSIDE],
  ] as const) {
    run('addr', 'add', `${addresses.ipv4}/24`, 'dev', device)
    run('addr', 'add', `${addresses.ipv6}/64`, 'dev', device, 'nodad')
    run('link', 'set', device, 'up')
  }
  outside('link', 'set', 'lo', 'up')
  ip('route', 'add', 'default', 'via', OUTSIDE.ipv4)
  ip('-6', 'route', 'add', 'default', 'via', OUTSIDE.ipv6)
  // The mount namespace is ours too.
  const resolv = join(scratch.path, 'resolv.conf')
  writeFileSync(resolv, `nameserver ${OUTSIDE.ipv4}\n`)
  execFileSync('mount', ['--bind', resolv, '/etc/resolv.conf'])
  const servers: ChildProcess[] = []
  const serve = async (...argv: readonly [string, ...string[]]): Promise<void> => {
    const server = spawn('ip', ['netns', 'exec', OUT, ...argv], { stdio: ['ignore', 'pipe', 'inherit'] })
    servers.push(server)
    await once(server.stdout, 'data')
  }
  await serve(process.execPath, join(import.meta.dirname, 'outside-servers.ts'))
  const run = promisify(execFile)
  const lab: Lab = {
    dir: scratch.path,
    async outside(...argv) {
      const { stdout } = await run('ip', ['netns', 'exec', OUT, ...argv]).catch((error: { stdout?: string }) => ({
        stdout: error.stdout ?? '',
      }))
      return stdout.trim()
    },
    serve,
    async counts() {
      const [takenBytes = 0, calls = 0] = (await lab.outside('/bin/busybox', 'nc', '-w', '5', '127.0.0.1', '9003')).split(' ').map(Number)
      return { takenBytes, calls }
    },
    async [Symbol.asyncDispose]() {
      for (const server of servers) server.kill('SIGKILL')
      ip('netns', 'delete', OUT)
      execFileSync('umount', ['/etc/resolv.conf'])
      await scratch[Symbol.asyncDispose]()
    },
  }
  return lab
}
