/** A person at a terminal: util-linux's `script` gives the pty, which Debian always has. */
import { spawn } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { runCommand } from '../../packages/daemon/src/host/run-command.ts'
import { REPOSITORY } from '../harness/daemon-process.ts'

export interface TerminalSession {
  /** All that the terminal has shown so far. */
  shown(): string
  type(text: string): void
  /** Resolves when the terminal shows `wanted`; throws with what it shows instead. */
  until(wanted: string | RegExp): Promise<void>
  resize(rows: number, cols: number): Promise<void>
  /** A signal to the `dormouse` process itself. */
  signal(name: NodeJS.Signals): Promise<void>
  /** Waits for the end. `settings` are the terminal's afterwards, as `stty -a` says them. */
  end(): Promise<{ code: number; settings: string }>
}

const LIMIT_MS = 20_000

/** Runs `dormouse ARGS` on a terminal of 30 rows and 100 columns. The arguments must need no quoting. */
export function atTerminal(
  args: readonly string[],
  options: { dir: string; socket: string; env?: Record<string, string> },
): TerminalSession {
  const files = { tty: join(options.dir, 'tty'), pid: join(options.dir, 'pid') }
  const line = [
    // A Ctrl-C on the terminal is for all who are on it; this shell stays to tell the exit code.
    'trap : INT',
    'stty rows 30 cols 100',
    `tty > ${files.tty}`,
    `sh -c 'echo $$ > ${files.pid}; exec ${join(REPOSITORY, 'bin/dormouse')} ${args.join(' ')}'`,
    'echo "[code=$?]"',
    'stty -a',
  ].join('; ')
  const child = spawn('script', ['-q', '-f', '-c', line, '/dev/null'], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, TERM: 'xterm', SHELL: '/bin/sh', DORMOUSE_HOST: `unix://${options.socket}`, ...options.env },
  })
  const limit = setTimeout(() => child.kill('SIGKILL'), 3 * LIMIT_MS)
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve())).finally(() => clearTimeout(limit))
  let shown = ''
  const checks = new Set<() => void>()
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    shown += text
    for (const check of checks) check()
  })

  return {
    shown: () => shown,
    type: (text) => void child.stdin.write(text),
    until: (wanted) =>
      new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          checks.delete(check)
          reject(new Error(`The terminal did not show ${wanted}, but:\n${shown}`))
        }, LIMIT_MS)
        const check = (): void => {
          if (!(typeof wanted === 'string' ? shown.includes(wanted) : wanted.test(shown))) return
          clearTimeout(timer)
          checks.delete(check)
          resolve()
        }
        checks.add(check)
        check()
      }),
    async resize(rows, cols) {
      const tty = (await readFile(files.tty, 'utf8')).trim()
      await runCommand(['stty', '-F', tty, 'rows', String(rows), 'cols', String(cols)], { step: { signal: AbortSignal.timeout(5000) } })
    },
    async signal(name) {
      process.kill(Number(await readFile(files.pid, 'utf8')), name)
    },
    async end() {
      await ended
      return { code: Number(/\[code=(\d+)\]/.exec(shown)?.[1] ?? Number.NaN), settings: shown.slice(shown.lastIndexOf('[code=')) }
    },
  }
}
