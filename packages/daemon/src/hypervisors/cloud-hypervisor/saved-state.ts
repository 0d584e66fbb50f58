/**
 * What Cloud Hypervisor writes of a machine, `config.json` and `state.json`, as far as it has to be known here to give it another memory
 * and other disks. Pure. Everything else in it is the VMM's own and stays as it was written.
 */
import { AppError } from '@dormouse/api/errors.ts'
import { KERNEL_NAME, MEMORY_FILE, MEMORY_ID, NIC_ID, RATE_GROUP, rateBucket, type Slot } from './machine.ts'

export interface SavedMachine {
  readonly config: Json
  readonly state: Json
}

type Json = Readonly<Record<string, unknown>>

/** A stretch of the guest's memory, in pages of its file. */
export interface PageRange {
  readonly first: number
  readonly count: number
}

const PAGE = 4096

/** One text, as it is kept. */
export const formatSaved = (saved: SavedMachine): string => JSON.stringify(saved)

/** Throws `snapshot_unusable`. */
export function parseSaved(text: string): SavedMachine {
  let saved: unknown
  try {
    saved = parseExactly(text)
  } catch (cause) {
    throw unusable('is no JSON', cause)
  }
  return { config: objectIn(saved, 'config'), state: objectIn(saved, 'state') }
}

export interface NewWiring {
  readonly slots: readonly Slot[]
  /** Those that were plugged when it was saved; absent: none. */
  readonly volumes?: readonly Slot[]
  readonly sharesMemory: boolean
  /** Of its card, where its driver has not met it yet. */
  readonly mac?: string
  readonly diskIoBps?: number
}

/** The configuration with the files, the card's address and the rate of another VM. */
export function rewire(config: Json, { slots, volumes = [], sharesMemory, mac, diskIoBps }: NewWiring): Json {
  const bucket = diskIoBps === undefined ? undefined : rateBucket(diskIoBps)
  const memory = objectIn(config, 'memory')
  const [zone, ...more] = listIn(memory, 'zones')
  if (zone?.id !== MEMORY_ID || more.length > 0) throw unusable('has another memory than it was made with')
  const disks = listIn(config, 'disks')
  const plugged = disks.slice(slots.length).map(({ serial }) => serial)
  if (disks.length !== slots.length + volumes.length || volumes.some(({ id }) => !plugged.includes(id)))
    throw unusable('has other disks than it was made with')
  const { rate_limit_groups: _groups, ...rest } = config
  return {
    ...rest,
    payload: { ...objectIn(config, 'payload'), kernel: KERNEL_NAME },
    memory: { ...memory, zones: [{ ...zone, file: MEMORY_FILE, shared: sharesMemory }] },
    disks: [...slots, ...volumes].map(({ id, path, readOnly }, index) => {
      const { rate_limit_group: _group, ...disk } = (index < slots.length ? disks[index] : disks.find(({ serial }) => serial === id)) ?? {}
      const rated = bucket === undefined || id.startsWith('empty') ? {} : { rate_limit_group: RATE_GROUP }
      // The device keeps its name: state and places are by that. Its guest looks for the serial.
      return { ...disk, path, readonly: readOnly, serial: id, ...rated }
    }),
    ...(bucket === undefined ? {} : { rate_limit_groups: [{ id: RATE_GROUP, rate_limiter_config: { bandwidth: bucket } }] }),
    ...(config.net == null
      ? {}
      : { net: listIn(config, 'net').map((nic) => (nic.id === NIC_ID && mac !== undefined ? { ...nic, mac } : nic)) }),
  }
}

/**
 * The state with so much of the memory to be read from a file: none, or the pages that differ from what is mapped. Those beyond the hole
 * below 4 GiB have another address than their place in the memory's file.
 */
export function withMemory(state: Json, ranges: readonly PageRange[]): Json {
  return withData(state, ['memory-manager'], (data) => {
    const mappings = listIn(data, 'guest_ram_mappings').map((mapping) => ({
      gpa: numberIn(mapping, 'gpa'),
      size: numberIn(mapping, 'size'),
      offset: numberIn(mapping, 'file_offset'),
    }))
    return { ...data, memory_ranges: { data: ranges.flatMap((range) => addressesOf(range, mappings)) } }
  })
}

/** A mapping may end in the midst of a range. */
function addressesOf({ first, count }: PageRange, mappings: readonly { gpa: number; size: number; offset: number }[]) {
  const parts: { gpa: number; length: number }[] = []
  const end = (first + count) * PAGE
  for (let at = first * PAGE; at < end; ) {
    const mapping = mappings.find(({ offset, size }) => offset <= at && at < offset + size)
    if (mapping === undefined) throw unusable('has memory where the machine has none')
    const length = Math.min(end, mapping.offset + mapping.size) - at
    parts.push({ gpa: mapping.gpa + (at - mapping.offset), length })
    at += length
  }
  return parts
}

/**
 * Devices that no driver has met begin anew, as what they are then: a disk with its own size, a card with its own address. Their places,
 * which the guest's kernel knows, stay.
 */
export function withFreshDevices(state: Json, ids: readonly string[]): Json {
  const snapshots = objectIn(state, 'snapshots')
  const manager = objectIn(snapshots, 'device-manager')
  const devices = objectIn(manager, 'snapshots')
  const kept = Object.fromEntries(Object.entries(devices).filter(([id]) => !ids.includes(id)))
  if (Object.keys(kept).length + ids.length !== Object.keys(devices).length) throw unusable('lacks a device that it was made with')
  return { ...state, snapshots: { ...snapshots, 'device-manager': { ...manager, snapshots: kept } } }
}

/** The devices of a machine that parked before its drivers were loaded. */
export const unmetDevices = (config: Json): string[] =>
  [...listIn(config, 'disks'), ...(config.net == null ? [] : listIn(config, 'net'))].map(({ id }) => String(id))

/** A snapshot is a tree; what each node says of itself is JSON in a text. */
function withData(state: Json, place: readonly string[], change: (data: Json) => Json): Json {
  const [name, ...below] = place
  if (name !== undefined) {
    const snapshots = objectIn(state, 'snapshots')
    return { ...state, snapshots: { ...snapshots, [name]: withData(objectIn(snapshots, name), below, change) } }
  }
  const { state: text } = objectIn(state, 'snapshot_data')
  if (typeof text !== 'string') throw unusable('is of another form')
  let data: unknown
  try {
    data = parseExactly(text)
  } catch (cause) {
    throw unusable('is of another form', cause)
  }
  return { ...state, snapshot_data: { state: JSON.stringify(change(asObject(data))) } }
}

/** Numbers of 64 bits are beyond what a number can be here: they stay the text that they were. */
const parseExactly = (text: string): unknown =>
  JSON.parse(text, (_name, value: unknown, context?: { readonly source?: string }) =>
    typeof value === 'number' && !Number.isSafeInteger(value) && context?.source !== undefined ? rawJson(context.source) : value,
  )

/** Of ECMAScript 2026; V8 has it, TypeScript does not know of it yet. */
const rawJson = (JSON as unknown as { rawJSON(text: string): unknown }).rawJSON

function asObject(value: unknown): Json {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Json
  throw unusable('is of another form')
}

const objectIn = (value: unknown, name: string): Json => asObject(asObject(value)[name])

function listIn(value: Json, name: string): Json[] {
  const list = value[name]
  if (Array.isArray(list)) return list.map(asObject)
  throw unusable('is of another form')
}

function numberIn(value: Json, name: string): number {
  const number = value[name]
  if (typeof number === 'number' && Number.isSafeInteger(number) && number >= 0) return number
  throw unusable('is of another form')
}

const unusable = (why: string, cause?: unknown): AppError =>
  new AppError('snapshot_unusable', `The device state that Cloud Hypervisor wrote ${why}`, cause === undefined ? {} : { cause })
