/** The names of vendors and devices, as Debian's `pci.ids` has them. Only those that are asked for are kept. */
import { createReadStream } from 'node:fs'
import { createInterface } from 'node:readline'

export interface PciNames {
  readonly vendor?: string
  readonly device?: string
}

interface Ids {
  readonly vendorId: string
  readonly deviceId: string
}

const keyOf = ({ vendorId, deviceId }: Ids): string => `${vendorId}:${deviceId}`

export class PciIds {
  readonly #files: readonly string[]
  readonly #known = new Map<string, PciNames>()

  /** The first of these files that is there is read. */
  constructor(files: readonly string[]) {
    this.#files = files
  }

  /** Nothing is known of one that is in no file. */
  async namesOf(ids: readonly Ids[]): Promise<(one: Ids) => PciNames> {
    const unknown = ids.filter((one) => !this.#known.has(keyOf(one)))
    if (unknown.length > 0) await this.#learn(unknown)
    return (one) => this.#known.get(keyOf(one)) ?? {}
  }

  async #learn(wanted: readonly Ids[]): Promise<void> {
    for (const file of this.#files) {
      try {
        const found = await lookUp(file, wanted)
        for (const [key, names] of found) this.#known.set(key, names)
        return
      } catch {
        // Not there, or not to be read: names are for people, and nothing stands on them.
      }
    }
  }
}

/** `10de  NVIDIA Corporation`, and below it, after a tab, `26b9  AD102GL [L40S]`. Classes follow and begin with a C. */
async function lookUp(file: string, wanted: readonly Ids[]): Promise<Map<string, PciNames>> {
  const found = new Map<string, PciNames>(wanted.map((one) => [keyOf(one), {}]))
  const vendors = new Set(wanted.map(({ vendorId }) => vendorId))
  const stream = createReadStream(file, 'utf8')
  let vendor: { readonly id: string; readonly name: string } | undefined
  for await (const line of createInterface({ input: stream, crlfDelay: Number.POSITIVE_INFINITY })) {
    const own = /^([0-9a-f]{4}) {2}(.+)$/.exec(line)
    if (own) {
      const [, id = '', name = ''] = own
      vendor = vendors.has(id) ? { id, name } : undefined
      if (vendor !== undefined) {
        for (const [key, names] of found) if (key.startsWith(`${id}:`)) found.set(key, { ...names, vendor: name })
      }
      continue
    }
    if (line.startsWith('C ')) break
    const device = vendor === undefined ? null : /^\t([0-9a-f]{4}) {2}(.+)$/.exec(line)
    if (vendor === undefined || device === null) continue
    const key = `${vendor.id}:${device[1]}`
    const names = found.get(key)
    if (names !== undefined) found.set(key, { ...names, device: String(device[2]) })
  }
  return found
}
