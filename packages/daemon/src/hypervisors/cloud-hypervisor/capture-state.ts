/**
 * The devices and CPUs of a paused machine, without its memory. Cloud Hypervisor writes configuration, state and memory in this order, and
 * no way is there to leave the last out; but where a file of the memory's name lies already it goes no further, and says so. The machine is
 * as it was then, paused. Its memory is taken by its shim, and only as far as it has changed.
 */
import { randomBytes } from 'node:crypto'
import { AppError } from '@dormouse/api/errors.ts'
import type { Step } from '../../lib/step.ts'
import { VmmRefusal } from '../vmm-api.ts'
import type { Control } from './control.ts'
import { OwnFiles } from './own-files.ts'
import { parseSaved, type SavedMachine } from './saved-state.ts'

export const MEMORY_RANGES = 'memory-ranges'
export const CONFIG = 'config.json'
export const STATE_FILE = 'state.json'

export async function saveMachine(control: Control, runDir: string, vcpus: number, step: Step): Promise<SavedMachine> {
  const name = `save-${randomBytes(4).toString('hex')}`
  await using files = await OwnFiles.make(runDir, name)
  await files.create(MEMORY_RANGES)
  let refusal: VmmRefusal | undefined
  try {
    await control.snapshot(`file:///proc/self/cwd/${name}`, step)
  } catch (error) {
    if (!(error instanceof VmmRefusal)) throw error
    refusal = error
  }
  if (refusal === undefined || !isWanted(refusal)) {
    throw new AppError(
      'internal_error',
      'Cloud Hypervisor did not save the state of the machine',
      refusal === undefined ? {} : { cause: refusal },
    )
  }
  const config = await files.read(CONFIG, MOST_CONFIG_BYTES)
  const state = await files.read(STATE_FILE, MOST_STATE_BYTES + vcpus * MOST_BYTES_OF_VCPU)
  return parseSaved(`{"config":${config},"state":${state}}`)
}

/** It has 4. */
const MOST_CONFIG_BYTES = 64 << 10
/** It has 70 KB with one processor; each more adds some 40. */
const MOST_STATE_BYTES = 256 << 10
const MOST_BYTES_OF_VCPU = 128 << 10

/** Release 53 names the file that lies there, 52 says only that one does; it is the only one in a directory that was new. */
const isWanted = ({ message }: VmmRefusal): boolean => message.includes(MEMORY_RANGES) || message.includes('File exists')
