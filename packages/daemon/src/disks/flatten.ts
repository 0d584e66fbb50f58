/**
 * A chain of layers, copied into one raw file by QEMU's block layer: a VMM without a machine.
 *
 * Layers are a guest's work and belong to several users, so what reads them has a right to none of them: it gets descriptors, as VMMs
 * do, runs as the disk's own user in QEMU's sandbox, and dies with the daemon. qemu-img could only be given paths.
 */
import { type ChildProcessByStdio, spawn } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../lib/step.ts'
import type { LayerFormat } from './layer.ts'

export interface OpenLayer {
  readonly fd: number
  readonly format: LayerFormat
}

const JOB = 'flatten'
const FIRST_FD = 3
const STDERR_KEPT = 4096
const SAID_MAX = 1 << 18

/**
 * Copies what a guest would see of `layers`, top first, into `target`, a file of holes that is as large. Holes stay holes. Does not flush.
 * `isHeld`: a VMM may hold them locked, and does not write to them now.
 */
export async function copyChain(
  layers: readonly OpenLayer[],
  target: { readonly fd: number },
  options: { user?: { readonly uid: number; readonly gid: number }; isHeld?: boolean; step: Step },
): Promise<void> {
  const { user, isHeld = false, step } = options
  let said = ''
  const sets = [target, ...layers].map((_, index) => FIRST_FD + index)
  const child = spawn(
    'setpriv',
    [
      ...['--pdeathsig', 'KILL', '--no-new-privs'],
      ...['qemu-system-x86_64', '-nodefaults', '-no-user-config', '-display', 'none', '-machine', 'none'],
      ...['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
      ...['-chardev', 'stdio,id=qmp,signal=off', '-mon', 'chardev=qmp,mode=control'],
      ...sets.flatMap((set) => ['-add-fd', `fd=${set},set=${set}`]),
      ...['-blockdev', JSON.stringify({ 'node-name': 'source', ...sourceNode(layers, { locking: isHeld ? 'off' : 'on' }) })],
      ...[
        '-blockdev',
        JSON.stringify({
          'node-name': 'target',
          driver: 'raw',
          discard: 'unmap',
          'detect-zeroes': 'unmap',
          file: fileNode(FIRST_FD, { isReadOnly: false }),
        }),
      ],
    ],
    {
      stdio: ['pipe', 'pipe', 'pipe', target.fd, ...layers.map(({ fd }) => fd)],
      env: { PATH: SYSTEM_PATH, LC_ALL: 'C.UTF-8' },
      ...(user === undefined ? {} : { uid: user.uid, gid: user.gid }),
    },
  ) as ChildProcessByStdio<Writable, Readable, Readable>
  const ended = new Promise<void>((resolve) => {
    child.once('error', (error) => {
      said ||= error.message
      resolve()
    })
    child.once('close', () => resolve())
  })
  const onAbort = (): void => void child.kill('SIGKILL')
  step.signal.addEventListener('abort', onAbort, { once: true })
  if (step.signal.aborted) onAbort()
  child.stderr.on('data', (chunk: Buffer) => {
    said = (said + chunk.toString('utf8')).slice(-STDERR_KEPT)
  })
  // It may be gone before it has read everything; how it ended says enough.
  child.stdin.on('error', () => undefined)
  try {
    const failure = await mirror(linesOf(child.stdout), (command) => child.stdin.write(`${JSON.stringify(command)}\n`))
    if (failure === undefined) return
    if (failure === '') await ended
    step.signal.throwIfAborted()
    throw new AppError('internal_error', `The disk could not be copied: ${failure || lastLine(said) || 'QEMU ended without a word'}`)
  } finally {
    step.signal.removeEventListener('abort', onAbort)
    child.kill('SIGKILL')
    await ended
  }
}

/** The conversation. Undefined when the copy is whole; else why not, or nothing when QEMU ended. */
async function mirror(lines: AsyncIterable<string>, tell: (command: object) => void): Promise<string | undefined> {
  tell({ execute: 'qmp_capabilities' })
  tell({ execute: 'blockdev-mirror', arguments: { 'job-id': JOB, device: 'source', target: 'target', sync: 'full' } })
  for await (const line of lines) {
    const { error, event, data } = JSON.parse(line) as QmpLine
    if (error !== undefined) return error.desc ?? ''
    // Ready means that all is copied; without being told to complete it would go on to copy what is written meanwhile.
    if (event === 'BLOCK_JOB_READY') tell({ execute: 'block-job-complete', arguments: { device: JOB } })
    if (event === 'BLOCK_JOB_COMPLETED') return data?.error
    if (event === 'BLOCK_JOB_CANCELLED') return 'it was cancelled'
  }
  return ''
}

/** The whole conversation is a few KiB; a QEMU that says more has been taken over by what it read. */
async function* linesOf(output: AsyncIterable<Buffer>): AsyncGenerator<string> {
  let text = ''
  let bytes = 0
  for await (const chunk of output) {
    bytes += chunk.length
    if (bytes > SAID_MAX) return
    const lines = (text + chunk.toString('utf8')).split('\n')
    text = lines.pop() ?? ''
    yield* lines
  }
}

interface QmpLine {
  readonly error?: { readonly desc?: string }
  readonly event?: string
  readonly data?: { readonly error?: string }
}

/** Every node names its driver, and what is below it: nothing is probed, and no name in a layer is followed. */
function sourceNode(layers: readonly OpenLayer[], { locking }: { locking: 'on' | 'off' }): object {
  return layers.reduceRight<object | null>((below, { format }, index) => {
    const file = fileNode(FIRST_FD + 1 + index, { isReadOnly: true, locking })
    return { driver: format, 'read-only': true, file, ...(format === 'qcow2' ? { backing: below } : {}) }
  }, null) as object
}

const fileNode = (set: number, { isReadOnly, locking = 'on' }: { isReadOnly: boolean; locking?: 'on' | 'off' }): object => ({
  driver: 'file',
  filename: `/dev/fdset/${set}`,
  'read-only': isReadOnly,
  'auto-read-only': false,
  locking,
  ...(isReadOnly ? {} : { discard: 'unmap' }),
})

const SYSTEM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

const lastLine = (text: string): string => text.trimEnd().split('\n').at(-1)?.trim() ?? ''
