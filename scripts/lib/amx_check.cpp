// Fills an AMX tile configuration the way ggml does, loads it, and reads it back.
// Exit 0: the compiler keeps the configuration. 1: it dropped the stores. 3: the kernel grants no AMX.
// gcc 12 declares only 8 of the 64 bytes as read by ldtilecfg, so an optimised build ends in 1 or in a signal.
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

struct tile_config {
    uint8_t palette = 0, start_row = 0, reserved[14] = {0};
    uint16_t colsb[16] = {0};
    uint8_t rows[16] = {0};
};

static void load() {
    alignas(64) tile_config config = {};
    config.palette = 1;
    config.rows[0] = 8;  config.colsb[0] = 64;
    config.rows[2] = 16; config.colsb[2] = 32;
    config.rows[7] = 16; config.colsb[7] = 64;
    _tile_loadconfig(&config);
}

int main() {
    const int arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18;
    if (syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata)) return 3;
    load();
    alignas(64) tile_config seen;
    _tile_storeconfig(&seen);
    return !(seen.rows[0] == 8 && seen.rows[2] == 16 && seen.rows[7] == 16 && seen.colsb[2] == 32);
}
