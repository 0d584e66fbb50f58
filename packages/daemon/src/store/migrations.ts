/**
 * The schema, as the steps that lead to it. A step that has been released is never changed; a new one is appended. Times are
 * milliseconds since 1970, lists and maps are JSON text, tables are STRICT.
 */
export interface Migration {
  readonly name: string
  readonly sql: string
}

export const migrations: readonly Migration[] = [
  {
    name: 'events',
    sql: `
      CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        data TEXT NOT NULL CHECK (json_valid(data))
      ) STRICT;
      CREATE INDEX events_by_subject ON events (subject, id);
    `,
  },
  {
    name: 'instances',
    sql: `
      CREATE TABLE instances (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created_at_ms INTEGER NOT NULL,
        -- what was asked for
        image TEXT NOT NULL,
        image_digest TEXT NOT NULL,
        platform TEXT NOT NULL,
        hypervisor TEXT NOT NULL,
        vcpus INTEGER NOT NULL,
        memory_bytes INTEGER NOT NULL,
        hotplug_bytes INTEGER NOT NULL DEFAULT 0,
        overlay_bytes INTEGER NOT NULL,
        disk_io_bps INTEGER,
        bandwidth_download INTEGER,
        bandwidth_upload INTEGER,
        network_enabled INTEGER NOT NULL,
        entrypoint TEXT,
        cmd TEXT,
        env TEXT NOT NULL DEFAULT '{}',
        tags TEXT NOT NULL DEFAULT '{}',
        snapshot_policy TEXT,
        skip_guest_agent INTEGER NOT NULL DEFAULT 0,
        skip_kernel_headers INTEGER NOT NULL DEFAULT 0,
        expires_at_ms INTEGER,
        -- what was given
        mac TEXT,
        ip TEXT,
        uid INTEGER UNIQUE,
        -- where it is
        state TEXT NOT NULL,
        state_error TEXT,
        -- what was begun and has not settled: the intent that a restart goes forward with, or undoes
        operation TEXT,
        vm TEXT,
        started_at_ms INTEGER,
        stopped_at_ms INTEGER,
        exit_code INTEGER,
        exit_message TEXT,
        phase_durations TEXT NOT NULL DEFAULT '{}',
        phase_since_ms INTEGER NOT NULL
      ) STRICT;
      CREATE INDEX instances_newest ON instances (created_at_ms DESC, id DESC);
      CREATE INDEX instances_by_image ON instances (image_digest);

      CREATE TABLE published_ports (
        instance_id TEXT NOT NULL REFERENCES instances (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        protocol TEXT NOT NULL CHECK (protocol IN ('tcp', 'udp')),
        host_ip TEXT NOT NULL,
        host_port INTEGER NOT NULL,
        guest_port INTEGER NOT NULL,
        PRIMARY KEY (protocol, host_ip, host_port)
      ) STRICT;
      CREATE INDEX published_ports_by_instance ON published_ports (instance_id, position);
    `,
  },
  {
    name: 'images',
    sql: `
      -- one image for one platform; its rootfs is named by the digest
      CREATE TABLE images (
        digest TEXT PRIMARY KEY,
        platform TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('pending', 'pulling', 'converting', 'ready', 'failed')),
        error_code TEXT,
        error TEXT,
        -- as they came: the digest is the manifest's
        manifest BLOB NOT NULL,
        config BLOB NOT NULL,
        -- where to pull from again after a restart; null for what was imported, or needs credentials that were given with a request
        origin TEXT,
        rootfs_bytes INTEGER,
        created_at_ms INTEGER NOT NULL
      ) STRICT;

      CREATE TABLE image_layers (
        image_digest TEXT NOT NULL REFERENCES images (digest) ON DELETE CASCADE,
        position INTEGER NOT NULL,
        digest TEXT NOT NULL,
        PRIMARY KEY (image_digest, position)
      ) STRICT;
      CREATE INDEX image_layers_by_digest ON image_layers (digest);

      -- a name leads to one image for each platform; it moves when the next one is ready
      CREATE TABLE image_names (
        name TEXT NOT NULL,
        platform TEXT NOT NULL,
        digest TEXT REFERENCES images (digest),
        next_digest TEXT REFERENCES images (digest),
        tags TEXT NOT NULL DEFAULT '{}',
        created_at_ms INTEGER NOT NULL,
        PRIMARY KEY (name, platform)
      ) STRICT;
      CREATE INDEX image_names_by_digest ON image_names (digest);
      CREATE INDEX image_names_by_next_digest ON image_names (next_digest);
    `,
  },
  {
    name: 'sleep and snapshots',
    sql: `
      -- the layers of the writable disk, top first, as names of files; what is written goes to the first
      ALTER TABLE instances ADD COLUMN disk TEXT NOT NULL DEFAULT '[]';
      -- the sleeping state that counts: its generation, and the memory base that it stands on
      ALTER TABLE instances ADD COLUMN sleep TEXT;

      CREATE TABLE snapshots (
        id TEXT PRIMARY KEY,
        name TEXT,
        kind TEXT NOT NULL CHECK (kind IN ('Standby', 'Stopped')),
        created_at_ms INTEGER NOT NULL,
        source_id TEXT NOT NULL,
        source_name TEXT NOT NULL,
        -- the instance as it was
        instance TEXT NOT NULL CHECK (json_valid(instance)),
        disk TEXT NOT NULL CHECK (json_valid(disk)),
        -- the memory base that it stands on; null for the disk alone
        base TEXT,
        -- of its directory, once that has been replaced
        generation TEXT,
        tags TEXT NOT NULL DEFAULT '{}',
        bytes INTEGER NOT NULL,
        compression TEXT,
        compression_state TEXT NOT NULL DEFAULT 'none' CHECK (compression_state IN ('none', 'compressing', 'compressed', 'error')),
        compression_error TEXT,
        compressed_bytes INTEGER,
        uncompressed_bytes INTEGER,
        -- the schedule's own are counted and deleted by it
        is_scheduled INTEGER NOT NULL DEFAULT 0,
        UNIQUE (source_id, name)
      ) STRICT;
      CREATE INDEX snapshots_newest ON snapshots (created_at_ms DESC, id DESC);
      CREATE INDEX snapshots_by_base ON snapshots (base);

      -- one for an instance at most; outlives it until its snapshots are gone
      CREATE TABLE snapshot_schedules (
        instance_id TEXT PRIMARY KEY,
        interval_ms INTEGER NOT NULL,
        -- 0 keeps all
        max_count INTEGER NOT NULL,
        max_age_ms INTEGER,
        name_prefix TEXT,
        metadata TEXT NOT NULL DEFAULT '{}',
        next_run_at_ms INTEGER NOT NULL,
        last_run_at_ms INTEGER,
        last_snapshot_id TEXT,
        last_error TEXT,
        created_at_ms INTEGER NOT NULL,
        updated_at_ms INTEGER NOT NULL
      ) STRICT;
    `,
  },
  {
    name: 'fresh boots',
    sql: 'ALTER TABLE instances ADD COLUMN fresh_boot INTEGER NOT NULL DEFAULT 0;',
  },
  {
    name: 'volumes',
    sql: `
      CREATE TABLE volumes (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        tags TEXT NOT NULL DEFAULT '{}',
        -- its layers, top first; none while an instance writes to it, whose row has them then
        disk TEXT NOT NULL CHECK (json_valid(disk)),
        -- the fork that it was made with
        made_for TEXT
      ) STRICT;
      CREATE INDEX volumes_newest ON volumes (created_at_ms DESC, id DESC);
      CREATE INDEX volumes_by_name ON volumes (name);
      CREATE INDEX volumes_by_fork ON volumes (made_for);

      -- the volumes that it has, each with its place and its layers
      ALTER TABLE instances ADD COLUMN volumes TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(volumes));
    `,
  },
  {
    name: 'leases',
    sql: `
      -- which address of the bridge's subnet is whose, as its number within the subnet; goes with the instance
      CREATE TABLE leases (
        instance_id TEXT PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE,
        host INTEGER NOT NULL UNIQUE
      ) STRICT;
    `,
  },
  {
    name: 'tokens',
    sql: `
      -- those that were made here, by their jti, until they expire
      CREATE TABLE tokens (
        id TEXT PRIMARY KEY,
        subject TEXT NOT NULL,
        -- null: everything
        scopes TEXT CHECK (scopes IS NULL OR json_valid(scopes)),
        created_at_ms INTEGER NOT NULL,
        expires_at_ms INTEGER NOT NULL,
        revoked_at_ms INTEGER
      ) STRICT;
      CREATE INDEX tokens_by_subject ON tokens (subject);

      -- what was signed for a subject before this holds no longer, wherever it was made
      CREATE TABLE token_cutoffs (
        subject TEXT PRIMARY KEY,
        before_ms INTEGER NOT NULL
      ) STRICT;
    `,
  },
  {
    name: 'audit',
    sql: `
      CREATE TABLE audit (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        at_ms INTEGER NOT NULL,
        caller TEXT,
        token_id TEXT,
        address TEXT,
        operation TEXT NOT NULL,
        -- what stood in the path; its first part once more, to be looked up by
        target TEXT NOT NULL CHECK (json_valid(target)),
        target_id TEXT,
        request_id TEXT NOT NULL,
        skipped INTEGER NOT NULL DEFAULT 0,
        -- counted and kept apart from the others
        is_refused INTEGER NOT NULL,
        result TEXT NOT NULL CHECK (result IN ('under_way', 'done', 'failed', 'refused', 'interrupted')),
        status INTEGER,
        code TEXT,
        resource_id TEXT,
        duration_ms INTEGER
      ) STRICT;
      CREATE INDEX audit_by_kind ON audit (is_refused, id);
      CREATE INDEX audit_by_time ON audit (at_ms);
      CREATE INDEX audit_by_caller ON audit (caller, id);
      CREATE INDEX audit_by_target ON audit (target_id, id);
      CREATE INDEX audit_by_resource ON audit (resource_id, id);
      CREATE INDEX audit_under_way ON audit (id) WHERE result = 'under_way';
    `,
  },
  {
    name: 'auto standby',
    sql: `
      ALTER TABLE instances ADD COLUMN auto_standby TEXT CHECK (auto_standby IS NULL OR json_valid(auto_standby));

      -- since when those that are to sleep by themselves are idle, and until when they are held awake
      CREATE TABLE auto_standby (
        instance_id TEXT PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE,
        idle_since_ms INTEGER,
        is_active INTEGER NOT NULL,
        last_activity_ms INTEGER,
        hold_until_ms INTEGER
      ) STRICT;
    `,
  },
  {
    name: 'devices',
    sql: `
      -- devices of the host that may be given to instances
      CREATE TABLE devices (
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        pci_address TEXT NOT NULL UNIQUE,
        type TEXT NOT NULL CHECK (type IN ('gpu', 'pci')),
        vendor_id TEXT NOT NULL,
        device_id TEXT NOT NULL,
        iommu_group INTEGER NOT NULL,
        tags TEXT NOT NULL DEFAULT '{}',
        created_at_ms INTEGER NOT NULL
      ) STRICT;

      -- functions that were taken from their drivers, for whom, and what each is given back to; written before it is taken
      CREATE TABLE device_bindings (
        pci_address TEXT PRIMARY KEY,
        instance_id TEXT NOT NULL,
        iommu_group INTEGER NOT NULL,
        driver TEXT,
        override TEXT
      ) STRICT;
      CREATE INDEX device_bindings_by_instance ON device_bindings (instance_id);

      -- parts of GPUs that were made for instances; written before they are made
      CREATE TABLE vgpus (
        instance_id TEXT PRIMARY KEY,
        profile TEXT NOT NULL,
        parent TEXT NOT NULL,
        type_id TEXT NOT NULL,
        uuid TEXT
      ) STRICT;

      -- the devices that it has, each with its id, name and address; and the part of a GPU that it is to have
      ALTER TABLE instances ADD COLUMN devices TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(devices));
      ALTER TABLE instances ADD COLUMN gpu TEXT;
    `,
  },
  {
    name: 'restarts',
    sql: `
      ALTER TABLE instances ADD COLUMN restart_policy TEXT CHECK (restart_policy IS NULL OR json_valid(restart_policy));
      -- what has become of it: attempts, and whether one is owed, or someone holds it
      ALTER TABLE instances ADD COLUMN restarts TEXT CHECK (restarts IS NULL OR json_valid(restarts));
    `,
  },
  {
    name: 'health',
    sql: `
      ALTER TABLE instances ADD COLUMN health_check TEXT CHECK (health_check IS NULL OR json_valid(health_check));

      -- what checks found when they last changed their minds, for the next daemon; it is of that check, since that moment, and of no other
      CREATE TABLE health_verdicts (
        instance_id TEXT PRIMARY KEY REFERENCES instances (id) ON DELETE CASCADE,
        running_since_ms INTEGER NOT NULL,
        health_check TEXT NOT NULL,
        verdict TEXT NOT NULL CHECK (json_valid(verdict))
      ) STRICT;
    `,
  },
  {
    name: 'when images were used',
    sql: `
      -- when it was last named, pulled or stood on. Written by the changes themselves, whoever makes them
      ALTER TABLE images ADD COLUMN used_at_ms INTEGER NOT NULL DEFAULT 0;
      UPDATE images SET used_at_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER);
      CREATE TRIGGER image_made AFTER INSERT ON images BEGIN
        UPDATE images SET used_at_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER) WHERE digest = NEW.digest;
      END;
      CREATE TRIGGER image_named AFTER INSERT ON image_names BEGIN
        UPDATE images SET used_at_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER) WHERE digest IN (NEW.digest, NEW.next_digest);
      END;
      CREATE TRIGGER image_renamed AFTER UPDATE ON image_names BEGIN
        UPDATE images SET used_at_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER) WHERE digest IN (NEW.digest, NEW.next_digest);
      END;
      CREATE TRIGGER image_taken AFTER INSERT ON instances BEGIN
        UPDATE images SET used_at_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER) WHERE digest = NEW.image_digest;
      END;
      CREATE TRIGGER image_left AFTER DELETE ON instances BEGIN
        UPDATE images SET used_at_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER) WHERE digest = OLD.image_digest;
      END;
      CREATE TRIGGER image_left_by_snapshot AFTER DELETE ON snapshots BEGIN
        UPDATE images SET used_at_ms = CAST(unixepoch('subsec') * 1000 AS INTEGER)
          WHERE digest = json_extract(OLD.instance, '$.imageDigest');
      END;
    `,
  },
  {
    name: 'registry and pushes',
    sql: `
      -- what was pushed to us, beside the images that are made of it; a repository is written as in names of images
      CREATE TABLE registry_manifests (
        repository TEXT NOT NULL,
        digest TEXT NOT NULL,
        media_type TEXT NOT NULL,
        document BLOB NOT NULL,
        -- until then it is kept though nothing leads to it; null once a tag or an index does
        wanted_until_ms INTEGER,
        PRIMARY KEY (repository, digest)
      ) STRICT;

      -- what a manifest stands on: blobs of its repository, for an index other manifests
      CREATE TABLE registry_references (
        repository TEXT NOT NULL,
        manifest TEXT NOT NULL,
        digest TEXT NOT NULL,
        PRIMARY KEY (repository, manifest, digest),
        FOREIGN KEY (repository, manifest) REFERENCES registry_manifests (repository, digest) ON DELETE CASCADE
      ) STRICT;
      CREATE INDEX registry_references_by_digest ON registry_references (repository, digest);

      -- what was pushed under the name of an image; counts as long as that name leads to it, or to a part of it
      CREATE TABLE registry_tags (
        name TEXT PRIMARY KEY,
        repository TEXT NOT NULL,
        digest TEXT NOT NULL,
        FOREIGN KEY (repository, digest) REFERENCES registry_manifests (repository, digest) ON DELETE CASCADE
      ) STRICT;
      CREATE INDEX registry_tags_by_digest ON registry_tags (repository, digest);

      -- which repository has which blob; the blob itself is in the one store
      CREATE TABLE registry_blobs (
        repository TEXT NOT NULL,
        digest TEXT NOT NULL,
        -- until then it is kept though no manifest stands on it
        wanted_until_ms INTEGER,
        PRIMARY KEY (repository, digest)
      ) STRICT;
      CREATE INDEX registry_blobs_by_digest ON registry_blobs (digest);

      CREATE TABLE pushes (
        id TEXT PRIMARY KEY,
        image TEXT NOT NULL,
        digest TEXT NOT NULL,
        target TEXT NOT NULL,
        insecure INTEGER NOT NULL,
        -- its credentials came with the request, and are kept nowhere
        needs_given INTEGER NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('queued', 'pushing', 'pushed', 'failed')),
        error TEXT,
        layers INTEGER,
        bytes INTEGER,
        created_at_ms INTEGER NOT NULL,
        completed_at_ms INTEGER
      ) STRICT;
      CREATE INDEX pushes_newest ON pushes (created_at_ms DESC, id DESC);
    `,
  },
  {
    name: 'subject of audit rows',
    sql: `
      -- id of what the path is about, which may have named it otherwise
      ALTER TABLE audit ADD COLUMN subject_id TEXT;
      CREATE INDEX audit_by_subject ON audit (subject_id, id);
      -- 0 what was asked for, 1 what was refused, 2 what the daemon did by itself: each has so many rows, and pushes out no other's
      ALTER TABLE audit RENAME COLUMN is_refused TO share;
    `,
  },
  {
    name: 'mediated egress',
    sql: `
      -- how it goes out by its proxy: what is closed to it, its credentials without their values, its authority with the key; JSON
      ALTER TABLE instances ADD COLUMN egress TEXT;
    `,
  },
]
