/** Machines of ours and not an instance's, run up to the point where the guest parks: golden boots, and the probe of KVM. */
import { randomBytes } from 'node:crypto'
import { type FileHandle, mkdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AppError, errorCodeOf } from '@dormouse/api/errors.ts'
import type { Step } from '../../lib/step.ts'
import type { KvmAnswers, KvmDriverUses } from '../kvm-host.ts'
import { logTail, wordsOf } from '../log-tail.ts'
import { connectToAgent } from '../vsock-guest.ts'
import { saveMachine } from './capture-state.ts'
import { Control } from './control.ts'
import { commonDescriptors, launch } from './launch.ts'
import { bootCommandLine, emptyDisk, FD, type Machine } from './machine.ts'
import { formatSaved } from './saved-state.ts'

/** Boots a machine with every slot empty until it is parked, and takes its device state; its memory is in `memory` then. */
export async function captureGolden(
  uses: KvmDriverUses,
  host: KvmAnswers,
  machine: Machine,
  { memory, stateFile }: { memory: FileHandle; stateFile: string },
  step: Step,
): Promise<void> {
  await withParked(uses, host, machine, memory, step, async (control, runDir) => {
    await control.pause(step)
    await writeFile(stateFile, formatSaved(await saveMachine(control, runDir, machine.vcpus, step)))
  })
}

/** Runs a machine up to its parked point, does `work` there and ends it, whatever happens. */
export async function withParked(
  uses: KvmDriverUses,
  host: KvmAnswers,
  machine: Machine,
  memory: FileHandle | undefined,
  step: Step,
  work: (control: Control, runDir: string) => Promise<void>,
): Promise<void> {
  const id = `golden-${randomBytes(4).toString('hex')}`
  const runDir = path.join(uses.workDir, id)
  const log = path.join(uses.workDir, `${id}.log`)
  await using undo = new AsyncDisposableStack()
  await mkdir(uses.workDir, { recursive: true, mode: 0o711 })
  undo.defer(() => uses.cgroups?.remove(id))
  undo.defer(() => Promise.all([runDir, log, `${log}.1`].map((name) => rm(name, { recursive: true, force: true }))).then(() => undefined))
  const shim = await launch(
    {
      machine,
      ...(uses.cgroups === undefined ? {} : { cgroups: uses.cgroups }),
      until: 'Running',
      plan: {
        shimPath: uses.shimPath,
        runDir,
        ...(uses.goldenUser === undefined ? {} : { user: uses.goldenUser }),
        groups: host.groups,
        logs: (['app', 'vmm', 'journal'] as const).map((name) => ({ name, file: log, maxBytes: 1 << 20 })),
        isolateNetwork: true,
        vmm: {
          argv: bootCommandLine(machine, {
            program: host.binary.file,
            version: host.binary.version,
            disks: [],
            sharesMemory: memory !== undefined,
          }),
          descriptors: [
            ...commonDescriptors(uses),
            emptyDisk(uses.memory.scratchDir),
            memory === undefined
              ? { number: FD.MEMORY, kind: 'sized', file: uses.memory.scratchDir, bytes: machine.memoryMib * 2 ** 20 }
              : { number: FD.MEMORY, kind: 'daemon', fd: memory.fd },
            // Of no bridge, and gone with the machine.
            ...(machine.hasTap ? [{ number: FD.NIC, kind: 'tap', name: 'dmgolden%d' } as const] : []),
          ],
        },
      },
    },
    step,
  )
  undo.defer(() => void shim[Symbol.dispose]())
  undo.defer(async () => void (await shim.kill()))
  const ended = shim.ended.then(async (): Promise<never> => {
    const { last, detail } = wordsOf(await logTail(log))
    throw new AppError('guest_unavailable', `The VM ended before it was parked: ${last}`, { detail })
  })
  ended.catch(() => undefined)
  let isGone = false
  void shim.ended.then(() => {
    isGone = true
  })
  const working = (async (): Promise<void> => {
    const stream = await connectToAgent(runDir, () => isGone, step)
    try {
      await uses.awaitParked(stream, step)
      await work(new Control(() => runDir), runDir)
    } finally {
      stream.destroy()
    }
  })().catch(async (error): Promise<never> => {
    // A connection that broke is how an end is first seen; how it ended says more.
    if (errorCodeOf(error) === 'guest_unavailable') await Promise.race([ended, sleep(1000, undefined, { ref: false })])
    throw error
  })
  await Promise.race([working, ended])
}
