import { stat } from 'node:fs/promises'
import type { Logger } from '../log.ts'
import type { Paths } from '../paths.ts'
import type { Database } from '../store/database.ts'
import type { ImageRow, ImageRows } from '../store/images.ts'
import type { FoundImage } from './archive-image.ts'
import type { BlobStore } from './blob-store.ts'
import type { ImageShelf } from './image-shelf.ts'
import type { ImageWork, StoredOrigin } from './image-work.ts'
import { credentialsFromFile, type Keychain } from './keychain.ts'
import type { ImageLimits } from './limits.ts'
import { parseManifest } from './manifest.ts'

interface RecoveryUses {
  readonly db: Database
  readonly rows: ImageRows
  readonly paths: Paths
  readonly log: Logger
  readonly limits: ImageLimits
  readonly store: BlobStore
  readonly shelf: ImageShelf
  readonly work: ImageWork
  readonly keychain: Keychain | undefined
  /** Was it pushed to us? Then its layers are here. */
  readonly wasPushed: (digest: string) => boolean
}

/**
 * What a daemon finds when it starts: drafts of no use, root file systems that someone took away, pulls that were cut off. Those
 * that can go on do; the others are failed images with the reason. Files that no row speaks of go.
 */
export async function recoverImages(uses: RecoveryUses): Promise<void> {
  await uses.store.prepare()
  await uses.store.sweepDrafts()
  for (const image of uses.rows.all()) {
    if (uses.work.isUnderWay(image.digest) || image.status === 'failed') continue
    if (image.status !== 'ready') takeUp(image, uses)
    else if (!(await stat(uses.paths.imageRootfs(image.digest)).catch(() => undefined))) {
      giveUp(image, 'Its root file system is gone from the disk: pull it again', uses)
    }
  }
  await uses.shelf.sweep()
}

function takeUp(image: ImageRow, uses: RecoveryUses): void {
  const origin = image.origin === undefined ? undefined : (JSON.parse(image.origin) as StoredOrigin)
  const found = foundIn(image, uses.limits)
  if (!origin && found && uses.wasPushed(image.digest)) {
    uses.log.info({ digest: image.digest }, 'taking the conversion of a pushed image up again')
    uses.work.start(found, undefined)
  } else if (!origin) giveUp(image, 'The daemon stopped while it was imported: import it again', uses)
  else if (!found) giveUp(image, 'Its manifest is damaged: pull it again', uses)
  else if (origin.needsGiven)
    giveUp(image, 'The daemon stopped while it was pulled, and its credentials were kept nowhere: pull it again', uses)
  else {
    uses.log.info({ digest: image.digest, repository: `${origin.registry}/${origin.repository}` }, 'taking an interrupted pull up again')
    uses.work.start(found, { ...origin, credentials: () => credentialsFromFile(uses.keychain, origin.registry) })
  }
}

function foundIn(image: ImageRow, limits: ImageLimits): FoundImage | undefined {
  try {
    const manifest = parseManifest(image.manifest, undefined, limits)
    if (manifest.kind !== 'manifest') return undefined
    return { digest: image.digest, manifest: image.manifest, config: image.config, layers: manifest.layers }
  } catch {
    return undefined
  }
}

function giveUp(image: ImageRow, why: string, uses: RecoveryUses): void {
  uses.db.transaction(() => uses.rows.setStatus(image.digest, 'failed', { errorCode: 'image_not_ready', error: why }), {
    evenWhenFull: true,
  })
  uses.log.warn({ digest: image.digest, why }, 'image failed')
}
