import type { CreateInstanceRequest } from '@dormouse/api/instances.ts'

/** `--bandwidth-down` and `--bandwidth-up` as a request has them. The daemon reads the rates, and says what is wrong with one. */
export const bandwidthOf = ({
  bandwidthDown,
  bandwidthUp,
}: {
  readonly bandwidthDown?: string
  readonly bandwidthUp?: string
}): Pick<NonNullable<CreateInstanceRequest['network']>, 'bandwidth_download' | 'bandwidth_upload'> => ({
  ...(bandwidthDown !== undefined && { bandwidth_download: bandwidthDown }),
  ...(bandwidthUp !== undefined && { bandwidth_upload: bandwidthUp }),
})
