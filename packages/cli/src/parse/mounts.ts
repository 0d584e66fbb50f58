/** `-v` in Docker's manner: `volume:/path[:ro][:overlay=SIZE]`. */
import type { VolumeMount } from '@dormouse/api/instances.ts'
import { usageFailure } from '../failure.ts'
import { parseSizeOption } from './values.ts'

export function parseMount(spec: string): VolumeMount {
  const [volume = '', path = '', ...options] = spec.split(':')
  const refuse = (why: string): never => {
    throw usageFailure(`Cannot mount ${JSON.stringify(spec)}: ${why}`, 'Write it as data:/srv/data, data:/data:ro or data:/data:overlay=2g')
  }
  if (volume === '') refuse('it names no volume')
  if (volume.includes('/')) refuse('a volume is named, not a directory of this host: make one with `dormouse volume import`')
  if (!path.startsWith('/')) refuse('it has no absolute path behind the volume')
  const mount = { volume_id: volume, mount_path: path }
  let isReadOnly = false
  let overlay: string | undefined
  for (const option of options) {
    if (option === 'ro') isReadOnly = true
    else if (option.startsWith('overlay=')) overlay = parseSizeOption(option.slice('overlay='.length))
    else if (option !== 'rw') refuse(`${JSON.stringify(option)} is not ro, rw or overlay=SIZE`)
  }
  // What is written over a shared volume leaves the volume as it is, so it is read-only without a word.
  if (overlay !== undefined) return { ...mount, readonly: true, overlay: true, overlay_size: overlay }
  return isReadOnly ? { ...mount, readonly: true } : mount
}
